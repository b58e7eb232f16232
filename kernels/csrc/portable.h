// What lets one source serve the C++ compiler and nvcc.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define CPN_HD __host__ __device__ inline
#else
#define CPN_HD inline
#endif

// Exported C symbols; everything else stays inside the library.
#define CPN_API extern "C" __attribute__((visibility("default")))

// Integer loops compiled for several vector widths, chosen when the library is loaded. Integers only: every width gives
// the same bits.
#if defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && defined(__x86_64__) && defined(__gnu_linux__)
#define CPN_VECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CPN_VECTOR_CLONES
#endif

namespace cpn {

// Error codes of the C interface; 1000 + n is CUDA runtime error n.
enum Status : int { kOk = 0, kBadArgument = 1, kSmallWorkspace = 2, kCudaError = 1000 };

// A caller's workspace, handed out piece by piece. With no memory behind it, it only counts.
class Arena {
 public:
  CPN_HD Arena(void* memory, size_t bytes) : base_(static_cast<char*>(memory)), bytes_(bytes) {}

  template <class T>
  CPN_HD T* take(size_t count) {
    used_ = (used_ + kAlign - 1) / kAlign * kAlign;
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += count * sizeof(T);
    return piece;
  }

  CPN_HD size_t used() const { return (used_ + kAlign - 1) / kAlign * kAlign; }
  CPN_HD bool fits() const { return used_ <= bytes_; }

 private:
  static constexpr size_t kAlign = 64;
  char* base_;
  size_t bytes_;
  size_t used_ = 0;
};

}  // namespace cpn
