/* An Ascend runtime that has no device: memory is the host's, streams are done at once, events
 * know when they were recorded, and a captured model does nothing when it runs.
 *
 * Only what torch_npu has to get an answer from stands here; build.py makes every other symbol of
 * CANN a function that returns 0, which is success.
 */
#define _GNU_SOURCE
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int status;
enum { OK = 0, NO_MEMORY = 207001 };

#define ALIGNMENT 512
#define OBJECT_BYTES 256
static const uint64_t MEMORY_BYTES = 64ull << 30;
static uint64_t allocated_bytes;
static int32_t current_device;

static status allocate(void **address, size_t bytes)
{
    return posix_memalign(address, ALIGNMENT, bytes ? bytes : ALIGNMENT) ? NO_MEMORY : OK;
}

static status new_object(void **object)
{
    *object = calloc(1, OBJECT_BYTES);
    return *object ? OK : NO_MEMORY;
}

/* ---- one device ---- */

status aclInit(const char *config) { return OK; }
status aclFinalize(void) { return OK; }
status aclrtGetDeviceCount(uint32_t *count) { *count = 1; return OK; }
status aclrtGetDevice(int32_t *device) { *device = current_device; return OK; }
status aclrtSetDevice(int32_t device) { current_device = device; return OK; }
status aclrtGetLogicDevIdByUserDevId(int32_t user, int32_t *logic) { *logic = user; return OK; }
status aclrtDeviceCanAccessPeer(int32_t *can, int32_t one, int32_t other) { *can = 1; return OK; }
status aclGetDeviceCapability(uint32_t device, int kind, int64_t *value) { *value = 0; return OK; }
const char *aclrtGetSocName(void) { return "Ascend910B1"; }
const char *aclGetRecentErrMsg(void) { return "a runtime without a device"; }

status aclrtGetCurrentContext(void **context)
{
    static char the_context;
    *context = &the_context;
    return OK;
}

status aclrtGetPrimaryCtxState(int32_t device, uint32_t *flags, int32_t *is_active)
{
    if (flags)
        *flags = 0;
    *is_active = 1;
    return OK;
}

status aclsysGetVersionStr(char *package, char *version)
{
    strcpy(version, "9.1.0");
    return OK;
}

size_t aclGetCompileoptSize(int option) { return OBJECT_BYTES; }

status aclGetCompileopt(int option, char *value, size_t length)
{
    if (length)
        value[0] = 0;
    return OK;
}

/* ---- memory ---- */

status aclrtMalloc(void **address, size_t bytes, int policy)
{
    allocated_bytes += bytes;
    return allocate(address, bytes);
}

status aclrtMallocAlign32(void **address, size_t bytes, int policy)
{
    return aclrtMalloc(address, bytes, policy);
}

status aclrtFree(void *address) { free(address); return OK; }
status aclrtMallocHost(void **address, size_t bytes) { return allocate(address, bytes); }
status aclrtMallocHostWithCfg(void **address, size_t bytes, void *config)
{
    return allocate(address, bytes);
}
status aclrtFreeHost(void *address) { free(address); return OK; }

status aclrtReserveMemAddress(void **address, size_t bytes, size_t alignment, void *hint, uint64_t f)
{
    return allocate(address, bytes);
}

status aclrtMallocPhysical(void **handle, size_t bytes, const void *properties, uint64_t flags)
{
    allocated_bytes += bytes;
    return new_object(handle);
}

status aclrtGetMemInfo(int kind, size_t *unused, size_t *total)
{
    *unused = MEMORY_BYTES - allocated_bytes;
    *total = MEMORY_BYTES;
    return OK;
}

status aclrtMemcpy(void *to, size_t room, const void *from, size_t bytes, int kind)
{
    memcpy(to, from, bytes);
    return OK;
}

status aclrtMemcpyAsync(void *to, size_t room, const void *from, size_t bytes, int kind, void *s)
{
    memcpy(to, from, bytes);
    return OK;
}

status aclrtMemset(void *to, size_t room, int32_t value, size_t bytes)
{
    memset(to, value, bytes);
    return OK;
}

status aclrtMemsetAsync(void *to, size_t room, int32_t value, size_t bytes, void *stream)
{
    memset(to, value, bytes);
    return OK;
}

/* Nothing is known of any address: torch_npu then asks its own allocators. */
status aclrtPointerGetAttributes(const void *address, void *attributes)
{
    memset(attributes, 0, 8);
    return 1;
}

/* ---- streams and events ---- */

status aclrtCreateStream(void **stream) { return new_object(stream); }
status aclrtCreateStreamWithConfig(void **stream, uint32_t priority, uint32_t flags)
{
    return new_object(stream);
}
status aclrtDestroyStream(void *stream) { return OK; }
status aclrtStreamQuery(void *stream, int *state) { *state = 0; return OK; }
status aclrtStreamGetId(void *stream, int32_t *id) { *id = 1; return OK; }

status aclrtCreateEvent(void **event) { return new_object(event); }
status aclrtCreateEventWithFlag(void **event, uint32_t flag) { return new_object(event); }
status aclrtCreateEventExWithFlag(void **event, uint32_t flag) { return new_object(event); }

status aclrtRecordEvent(void *event, void *stream)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    *(double *)event = now.tv_sec * 1e3 + now.tv_nsec / 1e6;
    return OK;
}

status aclrtEventElapsedTime(float *milliseconds, void *start, void *end)
{
    *milliseconds = (float)(*(double *)end - *(double *)start);
    return OK;
}

status aclrtQueryEventStatus(void *event, int *state) { *state = 1; return OK; }
status aclrtQueryEventWaitStatus(void *event, int *state) { *state = 1; return OK; }

/* ---- captured models ---- */

static int is_capturing;
static char the_model;

status aclmdlRICaptureBegin(void *stream, int mode) { is_capturing = 1; return OK; }

status aclmdlRICaptureToModelRIBegin(void *stream, void *model, int mode)
{
    is_capturing = 1;
    return OK;
}

status aclmdlRICaptureEnd(void *stream, void **model)
{
    is_capturing = 0;
    *model = &the_model;
    return OK;
}

status aclmdlRICaptureGetInfo(void *stream, int *state, void **model)
{
    if (state)
        *state = is_capturing;
    if (model)
        *model = is_capturing ? &the_model : NULL;
    return OK;
}

status aclmdlRIGetId(void *model, uint32_t *id) { *id = 1; return OK; }
status aclmdlRICaptureTaskGrpEnd(void *stream, void **handle) { return new_object(handle); }
