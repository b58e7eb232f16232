// A pass of a GPU algorithm as a function of a block of threads. On the device a block is CUDA's; on the host the same
// function runs thread by thread, in any order, so that tests meet the very code that the GPU launches.
//
// Between two `each` calls the threads of a block meet; what one must tell another goes through shared memory.
#pragma once

#include "portable.h"

namespace cpn {

constexpr int kBlockThreads = 256;

CPN_HD void atomic_add(int32_t* at, int32_t value) {
#if defined(__CUDA_ARCH__)
  atomicAdd(at, value);
#else
  *at += value;
#endif
}

CPN_HD void atomic_add(int64_t* at, int64_t value) {  // two's complement: the unsigned addition gives the same bits
#if defined(__CUDA_ARCH__)
  atomicAdd(reinterpret_cast<unsigned long long*>(at), static_cast<unsigned long long>(value));
#else
  *at += value;
#endif
}

// Returns what was there before.
CPN_HD int32_t atomic_min(int32_t* at, int32_t value) {
#if defined(__CUDA_ARCH__)
  return atomicMin(at, value);
#else
  const int32_t before = *at;
  if (value < before) *at = value;
  return before;
#endif
}

// A value that other threads may be writing; an older one may be seen.
CPN_HD int32_t racy_load(const int32_t* at) { return *const_cast<const volatile int32_t*>(at); }

// Running sums of `count` values in shared memory: values[i] becomes the sum of 0..i. `scratch` is as large.
template <class Block>
CPN_HD void inclusive_scan(const Block& block, uint64_t* values, uint64_t* scratch, int count) {
  for (int reach = 1; reach < count; reach *= 2) {
    block.each(count, [&](int i) { scratch[i] = values[i] + (i >= reach ? values[i - reach] : 0); });
    block.each(count, [&](int i) { values[i] = scratch[i]; });
  }
}

#if defined(__CUDACC__)
struct DeviceBlock {
  int x, y, z;

  template <class Work>
  CPN_HD void each(int count, Work&& work) const {
#if defined(__CUDA_ARCH__)
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kBlockThreads) work(i);
    __syncthreads();
#else
    (void)count, (void)work;
#endif
  }
};
#endif

// Runs blocks and threads one after the other: first to last, or last to first.
struct HostBlock {
  int x, y, z;
  bool backwards;

  template <class Work>
  void each(int count, Work&& work) const {
    for (int i = 0; i < count; ++i) work(backwards ? count - 1 - i : i);
  }
};

struct HostLauncher {
  bool backwards = false;

  template <class Pass>
  void operator()(const Pass& pass, int64_t columns, int rows, int layers) const {
    const int64_t total = columns * rows * layers;
    for (int64_t at = 0; at < total; ++at) {
      const int64_t number = backwards ? total - 1 - at : at;
      const HostBlock block{static_cast<int>(number % columns), static_cast<int>(number / columns % rows),
                            static_cast<int>(number / columns / rows), backwards};
      typename Pass::Shared shared;
      pass(block, shared);
    }
  }
};

}  // namespace cpn
