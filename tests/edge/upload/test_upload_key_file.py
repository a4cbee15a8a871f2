"""A key is made once, for its owner alone, and refused when a bit of it changed or when others can read it."""

import os
import pwd
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from command_line import done, refusal

from collafuse_edge.settings import UploadSettings
from collafuse_edge.upload import upload_images
from collafuse_edge.upload.key import default_key_path, load_or_create_upload_key
from collafuse_runtimes.diffusion.plan import SplitPlan
from collafuse_runtimes.disk.home import expand
from collafuse_runtimes.errors import ArtefactError, InputError
from collafuse_runtimes.files.secret_file import Secret, key_text, load_or_create_key

SHAPE = (1, 8, 8)
PLAN = SplitPlan(SHAPE, cut_ratio=0.3)
IMAGES = np.random.default_rng(1).uniform(-1, 1, (12, *SHAPE)).astype(np.float32)


BITS = [1 << n for n in range(8)]


def write_private(path: Path, text: bytes) -> Path:
    path.unlink(missing_ok=True)
    path.touch(0o600)
    path.write_bytes(text)
    return path


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "config" / "upload.key"
    made = load_or_create_upload_key(path)
    assert (len(made.key), made.created, made.has_checksum) == (32, True, True)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.stat().st_mtime_ns
    assert load_or_create_upload_key(path) == Secret(made.key)
    assert path.stat().st_mtime_ns == before
    assert load_or_create_upload_key(tmp_path / "other.key").key != made.key
    assert sorted(p.name for p in path.parent.iterdir()) == ["upload.key"]
    assert made.key.hex() not in repr(made)


def test_first_uploads_at_once_share_one_key(tmp_path: Path) -> None:
    for attempt in range(10):
        path, gate = tmp_path / f"{attempt}.key", Barrier(4)

        def first_upload(path: Path = path, gate: Barrier = gate) -> Secret:
            gate.wait()
            return load_or_create_upload_key(path)

        with ThreadPoolExecutor(4) as pool:
            made = [future.result() for future in [pool.submit(first_upload) for _ in range(4)]]
        assert {key_text(secret.key, "upload key") for secret in made} == {path.read_bytes()}
        assert sum(secret.created for secret in made) == 1


@pytest.mark.parametrize("kind", ["upload key", "engine key"])
def test_every_flipped_bit_and_every_lost_or_added_character_is_refused(tmp_path: Path, kind: str) -> None:
    path, whole = tmp_path / "key", key_text(bytes(range(100, 132)), kind)
    changed = [
        bytes([*whole[:i], whole[i] ^ (1 << bit), *whole[i + 1 :]]) for i in range(len(whole)) for bit in range(8)
    ]
    changed += [whole[:i] + whole[i + 1 :] for i in range(len(whole))]
    changed += [whole[:i] + extra + whole[i:] for i in range(len(whole) + 1) for extra in (b"0", b" ", b"\n")]
    changed += [whole[:i] for i in range(len(whole))]
    changed = [text for text in changed if text != whole]
    write_private(path, whole)
    assert load_or_create_key(path, kind, elsewhere="", mend="restore it").key == bytes(range(100, 132))
    for text in changed:
        path.write_bytes(text)
        with pytest.raises(ArtefactError, match=r"; restore it$"):
            load_or_create_key(path, kind, elsewhere="", mend="restore it")
    assert path.read_bytes() == changed[-1]


@pytest.mark.parametrize(
    "damage", [b"", b"00" * 31, b"00" * 33, b"zz" * 32, b"\xff\xfe" * 16, bytes(range(32)), b"0" * 63 + b"\n"]
)
def test_what_is_no_key_is_refused_and_left_alone(tmp_path: Path, damage: bytes) -> None:
    path = write_private(tmp_path / "key", damage)
    with pytest.raises(ArtefactError, match=r"does not hold an upload key .*; restore it from a copy$"):
        load_or_create_upload_key(path)
    assert path.read_bytes() == damage


def test_keys_of_another_kind_or_version_are_named(tmp_path: Path) -> None:
    write_private(tmp_path / "engine.key", key_text(bytes(32), "engine key"))
    with pytest.raises(ArtefactError, match="holds an engine key, not an upload key"):
        load_or_create_upload_key(tmp_path / "engine.key")
    write_private(tmp_path / "new.key", key_text(bytes(32), "upload key").replace(b"-key 2 ", b"-key 3 "))
    with pytest.raises(ArtefactError, match="has key version 3; this release reads 2"):
        load_or_create_upload_key(tmp_path / "new.key")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o666, 0o644])
def test_a_key_that_others_can_use_is_refused_with_the_command_that_mends_it(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "my site.key"
    key = load_or_create_upload_key(path).key
    path.chmod(mode)
    with pytest.raises(ArtefactError, match=rf"has mode 0{mode:o}: .*; run chmod 600 '{path}'$"):
        load_or_create_upload_key(path)
    path.chmod(0o600)
    assert load_or_create_upload_key(path).key == key
    path.chmod(0o400)
    assert load_or_create_upload_key(path).key == key


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_owner_is_not_judged_by_its_mode(tmp_path: Path) -> None:
    """As ssh: its reader could not change the mode anyhow."""
    path = tmp_path / "key"
    key = load_or_create_upload_key(path).key
    path.chmod(0o644)
    os.chown(path, 4321, 4321)
    assert load_or_create_upload_key(path).key == key


def test_a_link_to_a_key_is_that_key_and_a_broken_link_makes_none(tmp_path: Path) -> None:
    (tmp_path / "safe").mkdir()
    key = load_or_create_upload_key(tmp_path / "safe" / "real.key").key
    (tmp_path / "link").symlink_to(tmp_path / "safe" / "real.key")
    assert load_or_create_upload_key(tmp_path / "link").key == key
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    with pytest.raises(ArtefactError, match="is a link to a file that is not there"):
        load_or_create_upload_key(tmp_path / "broken")
    assert not (tmp_path / "gone").exists()


def test_a_folder_is_no_key(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="cannot read"):
        load_or_create_upload_key(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="give another --key"):
        load_or_create_upload_key(tmp_path / "file" / "upload.key")


def test_pipes_devices_and_loops_are_no_keys(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path / "loop"):
        with pytest.raises(ArtefactError, match=r"cannot read|is a link to a file that is not there"):
            upload_images(tmp_path / "s", IMAGES, PLAN, UploadSettings(key=path))
    (tmp_path / "large").write_bytes(bytes(5000))
    with pytest.raises(ArtefactError, match="too large, for a key"):
        load_or_create_upload_key(tmp_path / "large")


def test_key_and_ledger_live_in_the_users_configuration_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    folder = tmp_path / "xdg" / "collafuse-edge"
    assert default_key_path() == folder / "upload.key"
    upload_images(tmp_path / "shard", IMAGES, PLAN)
    assert sorted(p.name for p in folder.iterdir()) == ["upload.key", "upload.key.ledger.json"]
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_key_path() == tmp_path / "home" / ".config" / "collafuse-edge" / "upload.key"


def test_a_relative_folder_makes_no_key_in_every_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", "here")
    assert default_key_path() == tmp_path / "home" / ".config" / "collafuse-edge" / "upload.key"
    for home in ("here", "", "."):
        monkeypatch.setenv("HOME", home)
        with pytest.raises(ArtefactError, match="give --key, or set HOME or XDG_CONFIG_HOME to a folder"):
            default_key_path()
        with pytest.raises(InputError, match=rf"^cannot use ~/x: HOME is '{home}', no absolute path; give the whole"):
            expand("~/x")


def test_without_a_home_folder_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: {}["nobody"])
    with pytest.raises(ArtefactError, match="set HOME or XDG_CONFIG_HOME"):
        default_key_path()


def test_the_command_says_so_in_one_line(tmp_path: Path) -> None:
    done("init", "--size", 16, "--out", tmp_path / "plan.json")
    where = ("--plan", tmp_path / "plan.json", "--key", tmp_path / "key", "--out", tmp_path / "shard")
    load_or_create_upload_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    assert f"run chmod 600 {tmp_path}/key" in refusal("upload", "--data", "phantom:0:2", *where)
    assert not (tmp_path / "shard").exists()
