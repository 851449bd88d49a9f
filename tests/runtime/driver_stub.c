/* A CUDA driver on the host, for tests/runtime/test_cuda.py: memory is malloc, a millisecond is one call of work(). */
#include <stdlib.h>
#include <string.h>

static int done, capturing, captured, broken, live;
struct graph { int calls; };

void work(void) { if (capturing) captured++; else done++; }
void break_capture(int yes) { broken = yes; }
int allocations(void) { return live; }

int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int index) { *device = 0; return index; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)1; return 0; }
int cuCtxSetCurrent(void *context) { return context ? 0 : 201; }
int cuGetErrorString(int result, const char **text) { *text = "stubbed out"; return 0; }
int cuMemAlloc_v2(unsigned long long *at, size_t size) { *at = (unsigned long long)malloc(size); live++; return 0; }
int cuMemFree_v2(unsigned long long at) { free((void *)at); live--; return 0; }
int cuMemcpyHtoD_v2(unsigned long long at, const void *from, size_t size) { memcpy((void *)at, from, size); return 0; }
int cuMemcpyDtoH_v2(void *to, unsigned long long at, size_t size) { memcpy(to, (void *)at, size); return 0; }
int cuStreamCreate(void **stream, unsigned flags) { *stream = (void *)0x5eed; return flags == 1 ? 0 : 1; }
int cuStreamSynchronize(void *stream) { return stream == (void *)0x5eed ? 0 : 400; }
int cuStreamDestroy_v2(void *stream) { return 0; }
int cuEventCreate(void **event, unsigned flags) { *event = calloc(1, sizeof(int)); live++; return 0; }
int cuEventRecord(void *event, void *stream) { *(int *)event = done; return 0; }
int cuEventSynchronize(void *event) { return 0; }
int cuEventElapsedTime(float *ms, void *began, void *ended) { *ms = *(int *)ended - *(int *)began; return 0; }
int cuEventDestroy_v2(void *event) { free(event); live--; return 0; }
int cuStreamBeginCapture_v2(void *stream, int mode) { capturing = 1; captured = 0; return mode == 2 ? 0 : 1; }
int cuStreamEndCapture(void *stream, void **graph) {
    capturing = 0;
    if (broken) return 901;
    struct graph *made = malloc(sizeof *made);
    made->calls = captured;
    *graph = made;
    live++;
    return 0;
}
int cuGraphInstantiateWithFlags(void **made, void *graph, unsigned long long flags) {
    *made = memcpy(malloc(sizeof(struct graph)), graph, sizeof(struct graph));
    live++;
    return 0;
}
int cuGraphDestroy(void *graph) { free(graph); live--; return 0; }
int cuGraphExecDestroy(void *graph) { free(graph); live--; return 0; }
int cuGraphLaunch(void *graph, void *stream) { done += ((struct graph *)graph)->calls; return 0; }
