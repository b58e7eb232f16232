// Building the permutohedral lattice of an image on the CPU: simplices, points, neighbours, normalisation.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "dense_crf.h"
#include "thread_team.h"

namespace cpn {
namespace {

constexpr int kBlock = 64;                 // pixels whose simplices are found together
constexpr int64_t kFirstCapacity = 16384;  // of the hash table; doubled when half full
constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52: added and taken away, it rounds, ties to even

struct Slot {
  int64_t key;  // -1: empty
  int32_t point;
};

// What building needs besides the lattice itself; stays until the neighbours are found.
struct Scratch {
  double* keys;        // [entries] of the corners, then [points] of the points
  Slot* slots;         // [capacity]
  int64_t* header;     // {points, capacity}
};

int64_t largest_capacity(int64_t entries) {
  int64_t capacity = kFirstCapacity;
  while (capacity < 2 * entries) capacity *= 2;
  return 2 * capacity;
}

Scratch take_scratch(Arena& arena, const LatticePlan& plan) {
  Scratch scratch;
  scratch.header = arena.take<int64_t>(2);
  scratch.keys = arena.take<double>(plan.entries());
  scratch.slots = arena.take<Slot>(largest_capacity(plan.entries()));
  return scratch;
}

// False where a standard deviation is no positive number, or so small that keys do not fit.
bool make_plan(int height, int width, const double* deviations, int dimensions, LatticePlan& plan) {
  if (height < 1 || width < 1 || (dimensions != 2 && dimensions != kMaxDimensions)) return false;
  plan.height = height, plan.width = width, plan.dimensions = dimensions;
  if (plan.entries() > INT32_MAX) return false;
  double largest[kMaxDimensions];
  for (int axis = 0; axis < dimensions; ++axis) {
    if (!(deviations[axis] > 0) || !std::isfinite(deviations[axis])) return false;
    plan.inverse[axis] = 1 / deviations[axis];
    plan.scale[axis] = (dimensions + 1) * std::sqrt(2.0 / 3) / std::sqrt((axis + 1.0) * (axis + 2.0));
    largest[axis] = (axis == 0 ? width - 1 : axis == 1 ? height - 1 : 255) * plan.inverse[axis] * plan.scale[axis];
  }
  // Coordinate i runs from -i * largest[i - 1] to the sum of the later ones; a rounding, the corners and their
  // neighbours add less than 4 (D + 1) on each side.
  double total = 1, later = 0;
  plan.stride[0] = plan.stride_sum = plan.offset = 0;
  for (int i = dimensions; i >= 1; --i) {
    const double least = std::floor(-i * largest[i - 1]) - 4 * (dimensions + 1);
    plan.stride[i] = total;
    plan.stride_sum += total;
    plan.offset -= least * total;
    total *= std::ceil(later) + 4 * (dimensions + 1) - least + 1;
    if (!(total < kLargestKey)) return false;
    later += largest[i - 1];
  }
  return true;
}

struct Simplices {
  double key[kMaxDimensions + 1][kBlock];
  double weight[kMaxDimensions + 1][kBlock];
};

// Simplices of `kBlock` features: the nearest point whose coordinates are multiples of D + 1, the order of the
// differences to it, and from these the corners and their barycentric weights (section 3.1 of the paper).
template <int D>
inline __attribute__((always_inline)) void find_simplices(const LatticePlan& plan, const double (*feature)[kBlock],
                                                          Simplices& out) {
  constexpr double kCorners = D + 1;
  double nearest[D + 1][kBlock], difference[D + 1][kBlock], rank[D + 1][kBlock];
  for (int p = 0; p < kBlock; ++p) {
    double sum = 0, total = 0;
    for (int i = D; i >= 0; --i) {
      const double scaled = i > 0 ? feature[i - 1][p] * plan.scale[i - 1] : 0.0;
      const double elevated = sum - i * scaled;
      sum += scaled;
      const double rounded = (elevated / kCorners + kRound) - kRound;
      total += rounded;
      nearest[i][p] = rounded * kCorners;
      difference[i][p] = elevated - nearest[i][p];
    }
    for (int i = 0; i <= D; ++i) rank[i][p] = total;
  }
  for (int i = 0; i < D; ++i) {
    for (int j = i + 1; j <= D; ++j) {
      for (int p = 0; p < kBlock; ++p) {
        const double behind = difference[i][p] < difference[j][p] ? 1.0 : 0.0;
        rank[i][p] += behind;
        rank[j][p] += 1.0 - behind;
      }
    }
  }
  // Where the rounded coordinates do not sum to 0, those that were rounded furthest go one further back.
  for (int i = 0; i <= D; ++i) {
    for (int p = 0; p < kBlock; ++p) {
      const double shift = rank[i][p] < 0 ? kCorners : rank[i][p] > D ? -kCorners : 0.0;
      rank[i][p] += shift;
      nearest[i][p] += shift;
      difference[i][p] -= shift;
    }
  }
  double sorted[D + 2][kBlock], stride[D + 1][kBlock];
  for (int r = 0; r <= D; ++r) {
    for (int p = 0; p < kBlock; ++p) {
      double value = 0, step = 0;
      for (int i = 0; i <= D; ++i) {
        value = rank[i][p] == r ? difference[i][p] : value;
        step = rank[i][p] == r ? plan.stride[i] : step;
      }
      sorted[r][p] = value;
      stride[r][p] = step;
    }
  }
  for (int p = 0; p < kBlock; ++p) {
    double key = plan.offset;
    for (int i = 1; i <= D; ++i) key += plan.stride[i] * nearest[i][p];
    out.key[0][p] = key;
    out.weight[0][p] = 1 + (sorted[D][p] - sorted[0][p]) / kCorners;
    for (int k = 1; k <= D; ++k) {
      key += plan.stride_sum - kCorners * stride[D + 1 - k][p];
      out.key[k][p] = key;
      out.weight[k][p] = (sorted[D - k][p] - sorted[D + 1 - k][p]) / kCorners;
    }
  }
}

CPN_VECTOR_CLONES void find_simplices_2(const LatticePlan& plan, const double (*feature)[kBlock], Simplices& out) {
  find_simplices<2>(plan, feature, out);
}

CPN_VECTOR_CLONES void find_simplices_5(const LatticePlan& plan, const double (*feature)[kBlock], Simplices& out) {
  find_simplices<5>(plan, feature, out);
}

// Keys and weights of the corners of pixels begin .. end.
void place_pixels(const LatticePlan& plan, const uint8_t* image, int64_t begin, int64_t end, double* keys,
                  float* weights) {
  double feature[kMaxDimensions][kBlock] = {};
  Simplices simplices;
  const int corners = plan.corners();
  for (int64_t first = begin; first < end; first += kBlock) {
    const int count = static_cast<int>(std::min<int64_t>(kBlock, end - first));
    for_runs(plan.height, plan.width, first, first + count, [&](int64_t position, int64_t pixel, int64_t length) {
      const int64_t y = pixel / plan.width, left = pixel % plan.width, at = position - first;
      for (int64_t i = 0; i < length; ++i) {
        feature[0][at + i] = static_cast<double>(left + i) * plan.inverse[0];
        feature[1][at + i] = static_cast<double>(y) * plan.inverse[1];
        for (int c = 2; c < plan.dimensions; ++c) feature[c][at + i] = image[3 * (pixel + i) + c - 2] * plan.inverse[c];
      }
    });
    (plan.dimensions == 2 ? find_simplices_2 : find_simplices_5)(plan, feature, simplices);
    for (int p = 0; p < count; ++p) {
      for (int k = 0; k < corners; ++k) {
        keys[(first + p) * corners + k] = simplices.key[k][p];
        weights[(first + p) * corners + k] = static_cast<float>(simplices.weight[k][p]);
      }
    }
  }
}

int64_t slot_of(const Slot* slots, int64_t capacity, int64_t key) {
  uint64_t mixed = static_cast<uint64_t>(key) * 0x9E3779B97F4A7C15ull;
  mixed ^= mixed >> 29;
  int64_t at = static_cast<int64_t>((mixed * 0xBF58476D1CE4E5B9ull) >> 20) & (capacity - 1);
  while (slots[at].key != key && slots[at].key != -1) at = (at + 1) & (capacity - 1);
  return at;
}

void clear(Slot* slots, int64_t capacity) { std::fill(slots, slots + capacity, Slot{-1, 0}); }

// Numbers the points in the order in which pixels meet them, so that it does not depend on threads. The points' keys
// take the place of the corners' that have been read: there are never more of them.
void number_points(const LatticePlan& plan, Scratch& scratch, int32_t* corner_points) {
  int64_t capacity = kFirstCapacity, points = 0;
  clear(scratch.slots, capacity);
  double before[kMaxDimensions + 1];
  std::fill(before, before + kMaxDimensions + 1, -1.0);
  const int corners = plan.corners();
  for (int64_t pixel = 0; pixel < plan.pixels(); ++pixel) {
    for (int k = 0; k < corners; ++k) {
      const int64_t entry = pixel * corners + k;
      const double key = scratch.keys[entry];
      if (key == before[k]) {  // most pixels share corners with the one to their left
        corner_points[entry] = corner_points[entry - corners];
        continue;
      }
      before[k] = key;
      Slot& slot = scratch.slots[slot_of(scratch.slots, capacity, static_cast<int64_t>(key))];
      if (slot.key == -1) {
        slot = {static_cast<int64_t>(key), static_cast<int32_t>(points)};
        corner_points[entry] = static_cast<int32_t>(points);
        scratch.keys[points++] = key;
        if (2 * points >= capacity) {
          capacity *= 2;
          clear(scratch.slots, capacity);
          for (int64_t point = 0; point < points; ++point) {
            const int64_t known = static_cast<int64_t>(scratch.keys[point]);
            scratch.slots[slot_of(scratch.slots, capacity, known)] = {known, static_cast<int32_t>(point)};
          }
        }
      } else {
        corner_points[entry] = slot.point;
      }
    }
  }
  scratch.header[0] = points;
  scratch.header[1] = capacity;
}

void find_neighbours(const LatticePlan& plan, const Scratch& scratch, int64_t begin, int64_t end, Lattice& lattice) {
  const int64_t capacity = scratch.header[1];
  const auto point_at = [&](double key) {
    const Slot& slot = scratch.slots[slot_of(scratch.slots, capacity, static_cast<int64_t>(key))];
    return slot.key == -1 ? lattice.points : slot.point;
  };
  for (int axis = 0; axis < lattice.corners; ++axis) {
    int32_t* pair = lattice.neighbours + 2 * (static_cast<int64_t>(axis) * lattice.points + begin);
    for (int64_t point = begin; point < end; ++point, pair += 2) {
      pair[0] = point_at(scratch.keys[point] + plan.step(axis));
      pair[1] = point_at(scratch.keys[point] - plan.step(axis));
    }
  }
}

// Splat, blur and slice of ones; weights are then divided by the root of what each pixel gets.
void normalise(const LatticePlan& plan, Lattice& lattice, float* values, float* other) {
  const int64_t points = lattice.points, pixels = plan.pixels();
  const int corners = lattice.corners;
  std::fill(values, values + points + 1, 0.0f);
  other[points] = 0;
  for (int64_t entry = 0; entry < pixels * corners; ++entry) {
    values[lattice.corner_points[entry]] += lattice.corner_weights[entry];
  }
  for (int axis = 0; axis < corners; ++axis) {
    const int32_t* pair = lattice.neighbours + 2 * static_cast<int64_t>(axis) * points;
    for (int64_t point = 0; point < points; ++point, pair += 2) {
      other[point] = values[point] + 0.5f * (values[pair[0]] + values[pair[1]]);
    }
    std::swap(values, other);
  }
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
    float sum = 0;
    for (int64_t entry = pixel * corners; entry < (pixel + 1) * corners; ++entry) {
      sum += values[lattice.corner_points[entry]] * lattice.corner_weights[entry];
    }
    const float norm = 1 / std::sqrt(sum);
    for (int64_t entry = pixel * corners; entry < (pixel + 1) * corners; ++entry) lattice.corner_weights[entry] *= norm;
  }
}

// Entries by point: for threads that each write their own points.
void sort_entries(const LatticePlan& plan, Lattice& lattice) {
  std::fill(lattice.point_begin, lattice.point_begin + lattice.points + 1, 0);
  const int64_t entries = plan.entries();
  for (int64_t entry = 0; entry < entries; ++entry) ++lattice.point_begin[lattice.corner_points[entry]];
  int32_t sum = 0;
  for (int64_t point = 0; point <= lattice.points; ++point) {
    lattice.point_begin[point] = sum += lattice.point_begin[point];
  }
  // From behind, so that the ends become the begins.
  for (int64_t pixel = plan.pixels() - 1; pixel >= 0; --pixel) {
    for (int k = 0; k < lattice.corners; ++k) {
      const int64_t entry = pixel * lattice.corners + k;
      const int32_t at = --lattice.point_begin[lattice.corner_points[entry]];
      lattice.point_pixels[at] = static_cast<int32_t>(pixel);
      lattice.point_weights[at] = lattice.corner_weights[entry];
    }
  }
}

}  // namespace
}  // namespace cpn

// Bytes of scratch for the two calls below; -1 where a size or a standard deviation is out of range.
CPN_API int64_t cpn_dense_crf_scratch(int height, int width, const double* deviations, int dimensions) {
  cpn::LatticePlan plan;
  if (!cpn::make_plan(height, width, deviations, dimensions, plan)) return -1;
  cpn::Arena arena(nullptr, 0);
  cpn::take_scratch(arena, plan);
  return static_cast<int64_t>(arena.used());
}

// Features are x, y (dimensions 2; no image), or x, y, red, green, blue (5) of an image uint8 [height, width, 3], over
// their standard deviations -> corner_points and corner_weights [height * width, dimensions + 1]; returns the number of
// lattice points, or minus a status.
CPN_API int64_t cpn_dense_crf_points_cpu(const uint8_t* image, int height, int width, const double* deviations,
                                         int dimensions, int32_t* corner_points, float* corner_weights, int threads,
                                         void* memory, int64_t memory_bytes) {
  using namespace cpn;
  LatticePlan plan;
  if (threads < 1 || !make_plan(height, width, deviations, dimensions, plan)) return -kBadArgument;
  if ((image == nullptr) != (dimensions == 2)) return -kBadArgument;
  Arena arena(memory, static_cast<size_t>(std::max<int64_t>(memory_bytes, 0)));
  Scratch scratch = take_scratch(arena, plan);
  if (memory == nullptr || !arena.fits()) return -kSmallWorkspace;
  const auto place = [&](int member, int members) {
    place_pixels(plan, image, plan.pixels() * member / members, plan.pixels() * (member + 1) / members, scratch.keys,
                 corner_weights);
  };
  if (!run_team(threads, [&](int member) { place(member, threads); })) place(0, 1);
  number_points(plan, scratch, corner_points);
  return scratch.header[0];
}

// Completes a lattice of `points` points from what the call above left in the scratch: neighbours, normalised weights
// and, where point_begin is given, entries by point. `values` float32 [2 * (points + 1)] is for its own use.
CPN_API int cpn_dense_crf_lattice_cpu(int height, int width, const double* deviations, int dimensions,
                                      cpn::Lattice* lattice, float* values, int threads, void* memory,
                                      int64_t memory_bytes) {
  using namespace cpn;
  LatticePlan plan;
  if (threads < 1 || !make_plan(height, width, deviations, dimensions, plan)) return kBadArgument;
  Arena arena(memory, static_cast<size_t>(std::max<int64_t>(memory_bytes, 0)));
  const Scratch scratch = take_scratch(arena, plan);
  if (memory == nullptr || !arena.fits()) return kSmallWorkspace;
  const int64_t points = lattice->points;
  if (points != scratch.header[0] || lattice->corners != plan.corners()) return kBadArgument;
  const auto find = [&](int member, int members) {
    find_neighbours(plan, scratch, points * member / members, points * (member + 1) / members, *lattice);
  };
  if (!run_team(threads, [&](int member) { find(member, threads); })) find(0, 1);
  normalise(plan, *lattice, values, values + points + 1);
  if (lattice->point_begin != nullptr) sort_entries(plan, *lattice);
  return kOk;
}
