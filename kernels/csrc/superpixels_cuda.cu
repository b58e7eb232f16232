// SLIC on the GPU: the passes of superpixels_connect_blocks.h, one kernel launch each.
#include <cuda_runtime.h>

#include "superpixels_connect_blocks.h"

namespace cpn {
namespace {

template <class Pass>
__global__ void __launch_bounds__(kBlockThreads) run_pass(Pass pass) {
  __shared__ typename Pass::Shared shared;
  pass(DeviceBlock{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)}, shared);
}

struct StreamLauncher {
  cudaStream_t stream;

  template <class Pass>
  void operator()(const Pass& pass, int64_t columns, int rows, int layers) const {
    run_pass<<<dim3(static_cast<unsigned>(columns), rows, layers), kBlockThreads, 0, stream>>>(pass);
  }
};

bool plan_batch(int batch, int height, int width, int64_t segments, double compactness, Plan& plan) {
  return batch >= 1 && batch <= 65535 && make_plan(height, width, segments, compactness, plan);
}

}  // namespace
}  // namespace cpn

CPN_API int64_t cpn_superpixels_cuda_workspace(int batch, int height, int width, int64_t segments, double compactness) {
  cpn::Plan plan;
  if (!cpn::plan_batch(batch, height, width, segments, compactness, plan)) return -1;
  cpn::Arena arena(nullptr, 0);
  cpn::make_job(plan, batch, nullptr, nullptr, arena);
  return static_cast<int64_t>(arena.used());
}

// As cpn_superpixels_cpu, on device memory; work is queued on the stream, and nothing waits for it.
CPN_API int cpn_superpixels_cuda(const uint8_t* images, int32_t* labels, int batch, int height, int width,
                                 int64_t segments, double compactness, void* workspace, int64_t workspace_bytes,
                                 void* stream) {
  using namespace cpn;
  Plan plan;
  if (!plan_batch(batch, height, width, segments, compactness, plan)) return kBadArgument;
  Arena arena(workspace, static_cast<size_t>(workspace_bytes));
  const Job job = make_job(plan, batch, images, labels, arena);
  if (workspace == nullptr || !arena.fits()) return kSmallWorkspace;
  const StreamLauncher launch{static_cast<cudaStream_t>(stream)};
  run_clustering(launch, job);
  run_connectivity(launch, job);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? kOk : kCudaError + static_cast<int>(error);
}
