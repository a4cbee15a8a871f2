/* libnvidia-ml.so.1 without a GPU: what its calls answer is set by environment variables. */
#include <stdlib.h>
#include <string.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };

static int started = 0;
static int reads = 0;

static int setting(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text ? atoi(text) : otherwise;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (setting("FAKE_NVML_NO_DRIVER", 0)) return DRIVER_NOT_LOADED;
    started++;
    return SUCCESS;
}

int nvmlShutdown(void) {
    if (!started) return UNINITIALIZED;
    started--;
    return SUCCESS;
}

int fake_started(void) { return started; }

const char *nvmlErrorString(int result) {
    switch (result) {
        case NOT_SUPPORTED: return "Not Supported";
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case GPU_IS_LOST: return "GPU is lost";
        default: return "Error";
    }
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = setting("FAKE_NVML_GPUS", 1);
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    if (index >= (unsigned)setting("FAKE_NVML_GPUS", 1)) return INVALID_ARGUMENT;
    *device = (void *)(size_t)(index + 1);
    return SUCCESS;
}

int nvmlDeviceGetName(void *device, char *name, unsigned length) {
    strncpy(name, "Fake # GPU", length);
    name[5] = (char)('A' + (size_t)device - 1);
    return SUCCESS;
}

/* Reading k, counted from 0 over both quantities, fails with code where FAKE_NVML_FAIL is "k=code". */
static int answer(const char *supported, int otherwise) {
    const char *fail = getenv("FAKE_NVML_FAIL");
    int read = reads++;
    if (!setting(supported, otherwise)) return NOT_SUPPORTED;
    return fail && atoi(fail) == read ? atoi(strchr(fail, '=') + 1) : SUCCESS;
}

int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    int result = answer("FAKE_NVML_ENERGY", 1);
    *millijoules = 1000000ULL * (size_t)device + 1500ULL * reads;
    return result;
}

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    int result = answer("FAKE_NVML_POWER", 1);
    *milliwatts = 71250u + 1000u * (unsigned)(size_t)device;
    return result;
}
