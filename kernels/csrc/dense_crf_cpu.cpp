// Mean field of the dense CRF on the CPU. A pixel's or a lattice point's classes are one row of vector lanes; lanes never
// meet but in the softmax, whose order of summation is written down. So any vector width and thread count gives the same
// bits.
#include <algorithm>
#include <cstring>

#include "dense_crf.h"
#include "thread_team.h"

namespace cpn {
namespace {

constexpr int kLanes = 8;
constexpr int kMaxGroups = 32;  // 256 classes
constexpr int kMaxKernels = 2;
constexpr float kNothing = -1e30f;  // logarithm of the probability of classes that only fill the lanes

typedef float Lanes __attribute__((vector_size(kLanes * sizeof(float))));

#define CPN_INLINE inline __attribute__((always_inline))

struct MeanFieldJob {
  const float* log_probabilities;  // [classes][pixels]
  float* out;                      // [classes][pixels]
  int64_t pixels;
  int classes, groups, iterations, kernels;
  Lattice lattice[kMaxKernels];
  Lanes* unary;                    // [pixels][groups]
  Lanes* q;                        // [pixels][groups]
  Lanes* values[kMaxKernels];      // [points + 1][groups], the last row 0
  Lanes* other[kMaxKernels];       // likewise
};

// Groups known to the compiler keep a row in registers; G = 0 is for many classes.
template <int G>
struct Row {
  Lanes lanes[G == 0 ? kMaxGroups : G];
};

template <int G>
CPN_INLINE int groups_of(const MeanFieldJob& job) {
  return G == 0 ? job.groups : G;
}

// e^x for x <= 0, to 2 units in the last place; 0 below -87; not a number stays so.
CPN_INLINE void exponentiate(float* x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  for (int i = 0; i < kLanes; ++i) {
    const float bounded = x[i] < -87.0f ? -87.0f : x[i];
    const float shifted = bounded * 1.44269504f + kRound;
    const float power = shifted - kRound;
    const float rest = (bounded - power * 0.693359375f) + power * 2.12194440e-4f;
    float value = 1.9875691500e-4f;
    value = value * rest + 1.3981999507e-3f;
    value = value * rest + 8.3334519073e-3f;
    value = value * rest + 4.1665795894e-2f;
    value = value * rest + 1.6666665459e-1f;
    value = value * rest + 5.0000001201e-1f;
    value = value * rest * rest + rest + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof bits);
    bits = (bits + 127u) << 23;  // the low bits of `shifted` are the power
    float factor;
    std::memcpy(&factor, &bits, sizeof factor);
    x[i] = x[i] < -87.0f ? 0.0f : value * factor;
  }
}

template <int G>
CPN_INLINE void softmax(const MeanFieldJob& job, Row<G>& row) {
  const int groups = groups_of<G>(job);
  Lanes most = row.lanes[0];
  for (int g = 1; g < groups; ++g) most = row.lanes[g] > most ? row.lanes[g] : most;
  float largest = most[0];
  for (int i = 1; i < kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
  Lanes sums = {};
  for (int g = 0; g < groups; ++g) {
    float x[kLanes];
    row.lanes[g] -= largest;
    std::memcpy(x, &row.lanes[g], sizeof x);
    exponentiate(x);
    std::memcpy(&row.lanes[g], x, sizeof x);
    sums += row.lanes[g];
  }
  const float sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  const float factor = 1 / sum;
  for (int g = 0; g < groups; ++g) row.lanes[g] *= factor;
}

// Softmax of the unary term and, but for the first time, what the filters gather at each pixel. The result goes to q or,
// with `scatter`, straight to the lattice points for the next round.
template <int G, bool First>
CPN_INLINE void update(const MeanFieldJob& job, int64_t begin, int64_t end, bool scatter) {
  const int groups = groups_of<G>(job);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    Row<G> row;
    for (int g = 0; g < groups; ++g) row.lanes[g] = job.unary[pixel * groups + g];
    for (int kernel = 0; !First && kernel < job.kernels; ++kernel) {
      const Lattice& lattice = job.lattice[kernel];
      const int32_t* points = lattice.corner_points + pixel * lattice.corners;
      const float* weights = lattice.corner_weights + pixel * lattice.corners;
      Row<G> sum = {};
      for (int k = 0; k < lattice.corners; ++k) {
        const Lanes* values = job.values[kernel] + static_cast<int64_t>(points[k]) * groups;
        for (int g = 0; g < groups; ++g) sum.lanes[g] += values[g] * weights[k];
      }
      for (int g = 0; g < groups; ++g) row.lanes[g] += sum.lanes[g] * lattice.compat;
    }
    softmax<G>(job, row);
    if (!scatter) {
      for (int g = 0; g < groups; ++g) job.q[pixel * groups + g] = row.lanes[g];
      continue;
    }
    for (int kernel = 0; kernel < job.kernels; ++kernel) {
      const Lattice& lattice = job.lattice[kernel];
      const int32_t* points = lattice.corner_points + pixel * lattice.corners;
      const float* weights = lattice.corner_weights + pixel * lattice.corners;
      for (int k = 0; k < lattice.corners; ++k) {
        Lanes* values = job.other[kernel] + static_cast<int64_t>(points[k]) * groups;
        for (int g = 0; g < groups; ++g) values[g] += row.lanes[g] * weights[k];
      }
    }
  }
}

// What `scatter` does, for a range of lattice points: each gathers its pixels, in the same order.
template <int G>
CPN_INLINE void splat(const MeanFieldJob& job, int kernel, int64_t begin, int64_t end) {
  const int groups = groups_of<G>(job);
  const Lattice& lattice = job.lattice[kernel];
  for (int64_t point = begin; point < end; ++point) {
    Row<G> sum = {};
    for (int32_t at = lattice.point_begin[point]; at < lattice.point_begin[point + 1]; ++at) {
      const Lanes* q = job.q + static_cast<int64_t>(lattice.point_pixels[at]) * groups;
      for (int g = 0; g < groups; ++g) sum.lanes[g] += q[g] * lattice.point_weights[at];
    }
    for (int g = 0; g < groups; ++g) job.other[kernel][point * groups + g] = sum.lanes[g];
  }
}

template <int G>
CPN_INLINE void blur(const MeanFieldJob& job, int kernel, int axis, int64_t begin, int64_t end) {
  const int groups = groups_of<G>(job);
  const Lattice& lattice = job.lattice[kernel];
  const int32_t* pair = lattice.neighbours + 2 * (static_cast<int64_t>(axis) * lattice.points + begin);
  const Lanes* from = job.values[kernel];
  Lanes* to = job.other[kernel];
  for (int64_t point = begin; point < end; ++point, pair += 2) {
    const Lanes* back = from + static_cast<int64_t>(pair[0]) * groups;
    const Lanes* forth = from + static_cast<int64_t>(pair[1]) * groups;
    for (int g = 0; g < groups; ++g) {
      to[point * groups + g] = from[point * groups + g] + 0.5f * (back[g] + forth[g]);
    }
  }
}

#define CPN_BY_GROUPS(call)            \
  switch (job.groups) {                \
    case 1: { constexpr int G = 1; call; break; } \
    case 2: { constexpr int G = 2; call; break; } \
    case 3: { constexpr int G = 3; call; break; } \
    case 4: { constexpr int G = 4; call; break; } \
    default: { constexpr int G = 0; call; }       \
  }

CPN_VECTOR_CLONES void start_pixels(const MeanFieldJob& job, int64_t begin, int64_t end, bool scatter) {
  CPN_BY_GROUPS((update<G, true>(job, begin, end, scatter)))
}

CPN_VECTOR_CLONES void update_pixels(const MeanFieldJob& job, int64_t begin, int64_t end, bool scatter) {
  CPN_BY_GROUPS((update<G, false>(job, begin, end, scatter)))
}

CPN_VECTOR_CLONES void splat_points(const MeanFieldJob& job, int kernel, int64_t begin, int64_t end) {
  CPN_BY_GROUPS(splat<G>(job, kernel, begin, end))
}

CPN_VECTOR_CLONES void blur_points(const MeanFieldJob& job, int kernel, int axis, int64_t begin, int64_t end) {
  CPN_BY_GROUPS(blur<G>(job, kernel, axis, begin, end))
}

void load_unary(const MeanFieldJob& job, int64_t begin, int64_t end) {
  const int lanes = job.groups * kLanes;
  float* rows = reinterpret_cast<float*>(job.unary);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    for (int c = 0; c < job.classes; ++c) rows[pixel * lanes + c] = job.log_probabilities[c * job.pixels + pixel];
    for (int c = job.classes; c < lanes; ++c) rows[pixel * lanes + c] = kNothing;
  }
}

void store(const MeanFieldJob& job, int64_t begin, int64_t end) {
  const int lanes = job.groups * kLanes;
  const float* rows = reinterpret_cast<const float*>(job.q);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    for (int c = 0; c < job.classes; ++c) job.out[c * job.pixels + pixel] = rows[pixel * lanes + c];
  }
}

// One member's share of the whole; `job` is its own copy, whose buffers it swaps as the others do.
void mean_field(MeanFieldJob job, int member, int members, Barrier& barrier) {
  const int64_t begin = job.pixels * member / members, end = job.pixels * (member + 1) / members;
  const bool alone = members == 1;
  const auto share = [&](int64_t points) { return std::make_pair(points * member / members, points * (member + 1) / members); };
  load_unary(job, begin, end);
  for (int kernel = 0; member == 0 && kernel < job.kernels; ++kernel) {
    const int64_t points = job.lattice[kernel].points;
    std::fill(job.values[kernel] + points * job.groups, job.values[kernel] + (points + 1) * job.groups, Lanes{});
    std::fill(job.other[kernel] + points * job.groups, job.other[kernel] + (points + 1) * job.groups, Lanes{});
  }
  for (int iteration = 0; iteration <= job.iterations; ++iteration) {
    const bool last = iteration == job.iterations, scatter = alone && !last;
    for (int kernel = 0; scatter && kernel < job.kernels; ++kernel) {
      std::fill(job.other[kernel], job.other[kernel] + job.lattice[kernel].points * job.groups, Lanes{});
    }
    (iteration == 0 ? start_pixels : update_pixels)(job, begin, end, scatter);
    if (last) break;
    barrier.wait();
    for (int kernel = 0; kernel < job.kernels; ++kernel) {
      const auto [first, until] = share(job.lattice[kernel].points);
      if (!scatter) splat_points(job, kernel, first, until);
      std::swap(job.values[kernel], job.other[kernel]);
      for (int axis = 0; axis < job.lattice[kernel].corners; ++axis) {
        barrier.wait();
        blur_points(job, kernel, axis, first, until);
        std::swap(job.values[kernel], job.other[kernel]);
      }
    }
    barrier.wait();
  }
  store(job, begin, end);
}

bool take_job(Arena& arena, MeanFieldJob& job) {
  if (job.classes < 1 || job.classes > kMaxGroups * kLanes || job.pixels < 1 || job.iterations < 0) return false;
  if (job.kernels < 0 || job.kernels > kMaxKernels) return false;
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

bool fill_job(MeanFieldJob& job, int64_t pixels, int classes, int iterations, const Lattice* lattices, int kernels) {
  job.pixels = pixels, job.classes = classes, job.iterations = iterations, job.kernels = kernels;
  if (kernels < 0 || kernels > kMaxKernels) return false;
  std::copy(lattices, lattices + kernels, job.lattice);
  return true;
}

}  // namespace
}  // namespace cpn

CPN_API int64_t cpn_dense_crf_cpu_workspace(int64_t pixels, int classes, const cpn::Lattice* lattices, int kernels) {
  cpn::MeanFieldJob job = {};
  cpn::Arena arena(nullptr, 0);
  if (!cpn::fill_job(job, pixels, classes, 0, lattices, kernels) || !cpn::take_job(arena, job)) return -1;
  return static_cast<int64_t>(arena.used());
}

// log_probabilities float32 [classes, pixels] -> probabilities of the same shape after `iterations` of mean field over
// `kernels` (0 .. 2) lattices of the same pixels. With more than one thread the lattices need entries by point.
CPN_API int cpn_dense_crf_cpu(const float* log_probabilities, int64_t pixels, int classes, int iterations,
                              const cpn::Lattice* lattices, int kernels, float* out, int threads, void* workspace,
                              int64_t workspace_bytes) {
  using namespace cpn;
  MeanFieldJob job = {};
  Arena arena(workspace, static_cast<size_t>(std::max<int64_t>(workspace_bytes, 0)));
  if (threads < 1 || !fill_job(job, pixels, classes, iterations, lattices, kernels)) return kBadArgument;
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
