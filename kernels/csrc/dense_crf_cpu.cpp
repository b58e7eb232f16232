// Mean field of the dense CRF on the CPU. A pixel's or a lattice point's classes are one row of vector lanes; lanes
// never meet but in the softmax, whose order of summation is written down. So any vector width and thread count gives
// the same bits.
#include <algorithm>
#include <utility>

#include "dense_crf.h"
#include "thread_team.h"

namespace cpn {
namespace {

constexpr int kLanes = 8;
constexpr int kMaxGroups = 32;  // 256 classes
constexpr int kMaxKernels = 2;
constexpr float kNothing = -1e30f;  // logarithm of the probability of classes that only fill the lanes

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));

struct MeanFieldJob {
  const float* log_probabilities;  // [classes][pixels]
  float* out;                      // [classes][pixels]
  int64_t height, width, pixels;
  int classes, groups, iterations, kernels;
  Lattice lattice[kMaxKernels];
  Lanes* unary;                    // [pixels][groups]
  Lanes* q;                        // [pixels][groups]
  Lanes* values[kMaxKernels];      // [points + 1][groups], the last row 0
  Lanes* other[kMaxKernels];       // likewise
};

// Calls a function compiled for the number of groups; a 0 in its place is for many.
#define CPN_BY_GROUPS(function, ...)          \
  switch (job.groups) {                       \
    case 1: return function<1>(__VA_ARGS__);  \
    case 2: return function<2>(__VA_ARGS__);  \
    case 3: return function<3>(__VA_ARGS__);  \
    case 4: return function<4>(__VA_ARGS__);  \
    default: return function<0>(__VA_ARGS__); \
  }

namespace portable {
#define CPN_ROWS_TARGET
#include "dense_crf_rows.h"
#undef CPN_ROWS_TARGET
}  // namespace portable

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__)
#define CPN_ROWS_X86
namespace x86_v3 {
#define CPN_ROWS_TARGET __attribute__((target("arch=x86-64-v3")))
#include "dense_crf_rows.h"
#undef CPN_ROWS_TARGET
}  // namespace x86_v3
#endif

struct RowFunctions {
  decltype(&portable::update_pixels) update;
  decltype(&portable::splat_points) splat;
  decltype(&portable::blur_points) blur;
};

RowFunctions row_functions() {
#if defined(CPN_ROWS_X86)
  if (__builtin_cpu_supports("x86-64-v3")) return {x86_v3::update_pixels, x86_v3::splat_points, x86_v3::blur_points};
#endif
  return {portable::update_pixels, portable::splat_points, portable::blur_points};
}

void load_unary(const MeanFieldJob& job, int64_t begin, int64_t end) {
  const int lanes = job.groups * kLanes;
  for_runs(job.height, job.width, begin, end, [&](int64_t position, int64_t pixel, int64_t count) {
    float* rows = reinterpret_cast<float*>(job.unary) + position * lanes;
    for (int c = 0; c < job.classes; ++c) {
      const float* values = job.log_probabilities + c * job.pixels + pixel;
      for (int64_t i = 0; i < count; ++i) rows[i * lanes + c] = values[i];
    }
    for (int64_t i = 0; i < count; ++i) std::fill(rows + i * lanes + job.classes, rows + (i + 1) * lanes, kNothing);
  });
}

// The last update, run by run; the unary term, of no more use, makes room for the result.
void store(MeanFieldJob job, const RowFunctions& functions, int64_t begin, int64_t end) {
  const int lanes = job.groups * kLanes;
  job.q = job.unary;
  for_runs(job.height, job.width, begin, end, [&](int64_t position, int64_t pixel, int64_t count) {
    functions.update(job, position, position + count, job.iterations > 0, false);
    const float* rows = reinterpret_cast<const float*>(job.q) + position * lanes;
    for (int c = 0; c < job.classes; ++c) {
      float* values = job.out + c * job.pixels + pixel;
      for (int64_t i = 0; i < count; ++i) values[i] = rows[i * lanes + c];
    }
  });
}

// One member's share of the whole; `job` is its own copy, whose buffers it swaps as the others do.
void mean_field(MeanFieldJob job, int member, int members, Barrier& barrier) {
  const RowFunctions rows = row_functions();
  const int64_t begin = job.pixels * member / members, end = job.pixels * (member + 1) / members;
  const bool alone = members == 1;
  load_unary(job, begin, end);
  for (int kernel = 0; member == 0 && kernel < job.kernels; ++kernel) {
    const int64_t last = static_cast<int64_t>(job.lattice[kernel].points) * job.groups;
    std::fill(job.values[kernel] + last, job.values[kernel] + last + job.groups, Lanes{});
    std::fill(job.other[kernel] + last, job.other[kernel] + last + job.groups, Lanes{});
  }
  for (int iteration = 0; iteration < job.iterations; ++iteration) {
    for (int kernel = 0; alone && kernel < job.kernels; ++kernel) {
      std::fill(job.other[kernel], job.other[kernel] + job.lattice[kernel].points * job.groups, Lanes{});
    }
    rows.update(job, begin, end, iteration > 0, alone);
    barrier.wait();
    for (int kernel = 0; kernel < job.kernels; ++kernel) {
      const int64_t points = job.lattice[kernel].points;
      const int64_t first = points * member / members, until = points * (member + 1) / members;
      if (!alone) rows.splat(job, kernel, first, until);
      std::swap(job.values[kernel], job.other[kernel]);
      for (int axis = 0; axis < job.lattice[kernel].corners; ++axis) {
        barrier.wait();
        rows.blur(job, kernel, axis, first, until);
        std::swap(job.values[kernel], job.other[kernel]);
      }
    }
    barrier.wait();
  }
  store(job, rows, begin, end);
}

bool take_job(Arena& arena, MeanFieldJob& job) {
  if (job.classes < 1 || job.classes > kMaxGroups * kLanes || job.iterations < 0) return false;
  if (job.height < 1 || job.width < 1) return false;
  job.groups = (job.classes + kLanes - 1) / kLanes;
  job.unary = arena.take<Lanes>(job.pixels * job.groups);
  job.q = arena.take<Lanes>(job.pixels * job.groups);
  for (int kernel = 0; kernel < job.kernels; ++kernel) {
    const size_t rows = static_cast<size_t>(job.lattice[kernel].points) + 1;
    job.values[kernel] = arena.take<Lanes>(rows * job.groups);
    job.other[kernel] = arena.take<Lanes>(rows * job.groups);
  }
  return true;
}

bool fill_job(MeanFieldJob& job, int height, int width, int classes, int iterations, const Lattice* lattices,
              int kernels) {
  job.height = height, job.width = width, job.pixels = job.height * job.width;
  job.classes = classes, job.iterations = iterations, job.kernels = kernels;
  if (kernels < 0 || kernels > kMaxKernels) return false;
  std::copy(lattices, lattices + kernels, job.lattice);
  return true;
}

}  // namespace
}  // namespace cpn

CPN_API int64_t cpn_dense_crf_cpu_workspace(int height, int width, int classes, const cpn::Lattice* lattices,
                                            int kernels) {
  cpn::MeanFieldJob job = {};
  cpn::Arena arena(nullptr, 0);
  if (!cpn::fill_job(job, height, width, classes, 0, lattices, kernels) || !cpn::take_job(arena, job)) return -1;
  return static_cast<int64_t>(arena.used());
}

// log_probabilities float32 [classes, height, width] -> probabilities of the same shape after `iterations` of mean
// field over `kernels` (0 .. 2) lattices of the same pixels. With more than one thread the lattices need entries by
// point.
CPN_API int cpn_dense_crf_cpu(const float* log_probabilities, int height, int width, int classes, int iterations,
                              const cpn::Lattice* lattices, int kernels, float* out, int threads, void* workspace,
                              int64_t workspace_bytes) {
  using namespace cpn;
  MeanFieldJob job = {};
  Arena arena(workspace, static_cast<size_t>(std::max<int64_t>(workspace_bytes, 0)));
  if (threads < 1 || !fill_job(job, height, width, classes, iterations, lattices, kernels)) return kBadArgument;
  if (!take_job(arena, job)) return kBadArgument;
  if (workspace == nullptr || !arena.fits()) return kSmallWorkspace;
  job.log_probabilities = log_probabilities;
  job.out = out;
  for (int kernel = 0; kernel < kernels; ++kernel) {
    if (threads > 1 && job.lattice[kernel].point_begin == nullptr) return kBadArgument;
  }
  Barrier barrier(threads);
  if (!run_team(threads, [&](int member) { mean_field(job, member, threads, barrier); })) {
    Barrier alone(1);
    mean_field(job, 0, 1, alone);
  }
  return kOk;
}
