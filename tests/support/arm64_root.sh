#!/usr/bin/env bash
# The base install on aarch64 under emulation: golden vectors and images against x86 (docs/arm64.md). Not a test of speed.
#
#   sudo tests/support/arm64_root.sh FOLDER      PYTHON=.venv/bin/python is the x86 side; FOLDER is kept, so a second run is short;
#                                        MIRROR names a Debian mirror other than debootstrap's own
#
# Needs root on Debian or Ubuntu, and: apt-get install debootstrap qemu-user-static
set -euo pipefail
WORK=${1:?give a folder for the arm64 root, about 1 GB}
mkdir -p "$WORK"
WORK=$(realpath "$WORK")
ROOT=$WORK/root
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
BINFMT=/proc/sys/fs/binfmt_misc
QEMU=$(command -v qemu-aarch64-static)

if [ -z "${ARM64_INSIDE:-}" ]; then # mounts of this run are seen by this run alone
  exec env ARM64_INSIDE=1 unshare --mount tests/support/arm64_root.sh "$WORK"
fi

say() { echo; echo "== $*"; }
# The Cortex-A76 is the nearest that qemu 7.2 knows to a Jetson Orin's Cortex-A78AE.
inside() { chroot "$ROOT" /usr/bin/env -i QEMU_CPU=cortex-a76 HOME=/root LANG=C.UTF-8 PATH=/venv/bin:/usr/bin:/bin "$@"; }

say "the kernel hands aarch64 programs to qemu"
[ -e $BINFMT/register ] || mount -t binfmt_misc binfmt_misc $BINFMT
if [ ! -e $BINFMT/qemu-aarch64 ]; then # F: the kernel opens qemu now, so the root needs no copy of it
  magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
  mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
  echo ":qemu-aarch64:M::$magic:$mask:$QEMU:F" > $BINFMT/register
  trap 'echo -1 > $BINFMT/qemu-aarch64' EXIT
fi
"$QEMU" --version | head -1

say "Debian 12, arm64"
if [ ! -e "$ROOT/.ready" ]; then
  rm -rf "$ROOT"
  debootstrap --arch=arm64 --variant=minbase --include=python3,python3-venv bookworm "$ROOT" ${MIRROR:+"$MIRROR"} \
    > "$WORK/debootstrap.log"
  touch "$ROOT/.ready"
fi
mount -t proc proc "$ROOT/proc"
# No /sys: it describes the x86 processor, and ONNX Runtime ends with a segmentation fault where the two do not fit.
inside python3 -c "import platform; print(platform.machine(), 'Python', platform.python_version())"

say "wheel, and the wheels it needs for aarch64 under the device's constraints"
rm -rf "$WORK/sources" "$WORK/wheels"
mkdir "$WORK/sources" "$WORK/wheels"
cp -r pyproject.toml README.md LICENSE collafuse_edge runtimes export benchmarks "$WORK/sources"
"$PYTHON" -m pip wheel --quiet --no-deps --wheel-dir "$WORK/wheels" "$WORK/sources"
platforms=(--platform linux_aarch64 --platform manylinux2014_aarch64)
for minor in $(seq 17 36); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
"$PYTHON" -m pip download --quiet --dest "$WORK/wheels" --only-binary :all: "${platforms[@]}" --python-version 3.11 \
  --constraint runtimes/device-constraints.txt "$WORK"/wheels/collafuse_edge-*.whl
rm -rf "$ROOT/wheels" "$ROOT/venv" "$ROOT/case"
cp -r "$WORK/wheels" "$ROOT/wheels"
cp runtimes/device-constraints.txt "$ROOT/wheels"
inside python3 -m venv /venv
inside pip install --quiet --disable-pip-version-check --no-compile --no-index --find-links /wheels \
  --constraint /wheels/device-constraints.txt collafuse-edge
inside pip list --disable-pip-version-check --format freeze | grep -E '^(collafuse|numpy|onnxruntime|pillow|safetensors|typer)'

say "bundles, hand-over files and images made on x86"
"$PYTHON" tests/support/arm64_case.py make "$ROOT/case"

say "doctor on aarch64"
inside collafuse-edge doctor
for case in "$ROOT"/case/*/; do
  name=$(basename "$case")
  labels=()
  [ ! -e "$case/labels" ] || labels=(--labels "$(cat "$case/labels")")
  say "$name: verify and infer on aarch64"
  inside collafuse-edge verify "/case/$name/edge.head"
  inside collafuse-edge infer "/case/$name/edge.head" "/case/$name/x.tc.safetensors" --out "/case/$name/arm64" "${labels[@]}"
done

say "images of aarch64 against images of x86"
"$PYTHON" tests/support/arm64_case.py compare "$ROOT/case"
