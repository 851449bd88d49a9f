/* Lets the TensorRT 11.4 Python bindings drive the TensorRT-RTX 1.7 builder and ONNX parser.
 *
 * The bindings want libnvinfer.so.11, libnvinfer_plugin.so.11 and libnvonnxparser.so.11; no public
 * package index carries those. TensorRT-RTX's libraries, which a public wheel does carry, export the
 * same factories, so this file, built under those three names, forwards each factory with the
 * version that the loaded library itself reports. tensorrt.py has loaded those libraries by path;
 * they are found here by soname.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static void *symbol(const char *soname, const char *name) {
  void *library = dlopen(soname, RTLD_NOW | RTLD_NOLOAD);
  void *found = library ? dlsym(library, name) : NULL;
  if (!found) { fprintf(stderr, "trt_cpu: %s in %s: %s\n", name, soname, dlerror()); abort(); }
  return found;
}
static void *infer(const char *name) { return symbol("libtensorrt_rtx.so.1", name); }
static void *parser(const char *name) { return symbol("libtensorrt_onnxparser_rtx.so.1", name); }

int32_t getInferLibVersion(void) { return ((int32_t(*)(void))infer("getInferLibVersion"))(); }
int getNvOnnxParserVersion(void) { return ((int (*)(void))parser("getNvOnnxParserVersion"))(); }

void *createInferBuilder_INTERNAL(void *logger, int32_t version) {
  (void)version;
  return ((void *(*)(void *, int32_t))infer("createInferBuilder_INTERNAL"))(logger, getInferLibVersion());
}
void *createInferRuntime_INTERNAL(void *logger, int32_t version) {
  (void)version;
  return ((void *(*)(void *, int32_t))infer("createInferRuntime_INTERNAL"))(logger, getInferLibVersion());
}
void *createInferRefitter_INTERNAL(void *engine, void *logger, int32_t version) {
  (void)version;
  return ((void *(*)(void *, void *, int32_t))infer("createInferRefitter_INTERNAL"))(engine, logger, getInferLibVersion());
}
void *getPluginRegistry(void) { return ((void *(*)(void))infer("getPluginRegistry"))(); }
void *getBuilderPluginRegistry(int capability) { return ((void *(*)(int))infer("getBuilderPluginRegistry"))(capability); }
void *createNvOnnxParser_INTERNAL(void *network, void *logger, int version) {
  (void)version;
  return ((void *(*)(void *, void *, int))parser("createNvOnnxParser_INTERNAL"))(network, logger, getNvOnnxParserVersion());
}
void *createNvOnnxParserRefitter_INTERNAL(void *refitter, void *logger, int version) {
  (void)version;
  return ((void *(*)(void *, void *, int))parser("createNvOnnxParserRefitter_INTERNAL"))(refitter, logger, getNvOnnxParserVersion());
}
_Bool initLibNvInferPlugins(void *logger, const char *ns) { (void)logger; (void)ns; return 1; }
