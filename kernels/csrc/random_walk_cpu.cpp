// The random walk on the CPU: t steps of a stencil of 69 weights per pixel, several maps at a time.
#include <algorithm>
#include <cstring>

#include "portable.h"
#include "thread_team.h"

namespace cpn {
namespace {

constexpr int kPairs = 34;    // channels of an affinity
constexpr int kReach = 4;     // of a step, along rows and columns
constexpr int kLanes = 8;     // pixels of a row that are summed at once
constexpr int kTogether = 7;  // maps that share the weights once they are loaded

// Vectors stay in registers, where the compiler would keep an array of sums in memory.
typedef float Lanes __attribute__((vector_size(sizeof(float) * kLanes)));
struct __attribute__((packed, aligned(sizeof(float)), may_alias)) LanesAnywhere {
  Lanes lanes;
};

struct Offset { int dy, dx; };

// Half of the disc of radius 5: row by row from the pixel itself, which is left out.
struct HalfDisc {
  Offset at[kPairs];
  constexpr HalfDisc() : at() {
    int count = 0;
    for (int dy = 0; dy <= kReach; ++dy) {
      for (int dx = -kReach; dx <= kReach; ++dx) {
        if ((dy > 0 || dx > 0) && dy * dy + dx * dx < (kReach + 1) * (kReach + 1)) at[count++] = {dy, dx};
      }
    }
  }
};
constexpr HalfDisc kDisc;

struct WalkJob {
  const float* affinity;  // [batch][kPairs][height][width]
  const float* maps;      // [batch * classes][height][width]
  float* output;          // like maps
  int batch, classes, height, width;
  int64_t steps;
  int64_t pitch;          // floats of a row with its margins of zeros
  float* weights;         // [batch][kReach + height][kPairs][pitch]; 0 outside of the grid
  float* inverse;         // [batch][height][pitch], of the sum of a pixel's weights
  float* walking[2];      // [batch * classes][height + 2 kReach][pitch]; 0 outside of the grid

  int64_t map_size() const { return (height + 2 * kReach) * pitch; }
  float* weight_row(int64_t image, int y) const {
    return weights + ((kReach + height) * image + kReach + y) * kPairs * pitch + kReach;
  }
  float* inverse_row(int64_t image, int y) const { return inverse + (height * image + y) * pitch + kReach; }
  float* map_row(int which, int64_t map, int y) const {
    return walking[which] + map * map_size() + (kReach + y) * pitch + kReach;
  }
};

int64_t pitch_of(int width) { return (static_cast<int64_t>(width) + kLanes - 1) / kLanes * kLanes + 2 * kReach; }

// Affinities of a row's pairs that stay in the grid; row -kReach .. -1 are all margin.
void fill_weights(const WalkJob& job, int64_t image, int y) {
  float* row = job.weight_row(image, y) - kReach;
  std::fill(row, row + kPairs * job.pitch, 0.0f);
  if (y < 0) return;
  for (int pair = 0; pair < kPairs; ++pair) {
    const Offset to = kDisc.at[pair];
    const int begin = std::max(0, -to.dx), end = job.width - std::max(0, to.dx);
    if (y + to.dy >= job.height || begin >= end) continue;
    const float* from = job.affinity + ((image * kPairs + pair) * job.height + y) * job.width;
    std::copy(from + begin, from + end, row + pair * job.pitch + kReach + begin);
  }
}

void fill_inverse(const WalkJob& job, int64_t image, int y) {
  float* sums = job.inverse_row(image, y);
  std::fill(sums, sums + job.width, 1.0f);
  for (int pair = 0; pair < kPairs; ++pair) {
    const Offset to = kDisc.at[pair];
    const float* ahead = job.weight_row(image, y) + pair * job.pitch;
    const float* behind = job.weight_row(image, y - to.dy) + pair * job.pitch - to.dx;
    for (int x = 0; x < job.width; ++x) sums[x] += ahead[x] + behind[x];
  }
  for (int x = 0; x < job.width; ++x) sums[x] = 1.0f / sums[x];
}

void fill_map(const WalkJob& job, int64_t map) {
  for (float* padded : job.walking) {
    std::fill(padded + map * job.map_size(), padded + (map + 1) * job.map_size(), 0.0f);
  }
  const float* from = job.maps + map * job.height * job.width;
  for (int y = 0; y < job.height; ++y, from += job.width) std::copy(from, from + job.width, job.map_row(0, map, y));
}

// One step of one row of kMaps maps. Lanes are pixels, each with its own sum in the order of the pairs, so that every
// vector width gives the same bits. A neighbour outside of the grid is 0 times 0; lanes past the row are not stored.
template <int kMaps>
inline __attribute__((always_inline)) void step_row(const WalkJob& job, int which, int64_t image, int64_t map, int y) {
  const float* weights = job.weight_row(image, y);
  const float* inverse = job.inverse_row(image, y);
  const int64_t size = job.map_size(), pitch = job.pitch;
  const float* from = job.map_row(which, map, y);
  float* to = job.map_row(1 - which, map, y);
  const auto at = [](const float* place) { return reinterpret_cast<const LanesAnywhere*>(place); };
  for (int x = 0; x < job.width; x += kLanes) {
    Lanes sums[kMaps];
#pragma GCC unroll 8
    for (int m = 0; m < kMaps; ++m) sums[m] = at(from + m * size + x)->lanes;
    for (int pair = 0; pair < kPairs; ++pair) {
      const int64_t rows = kDisc.at[pair].dy, columns = kDisc.at[pair].dx, shift = rows * pitch + columns;
      const Lanes ahead = at(weights + pair * pitch + x)->lanes;
      const Lanes behind = at(weights + (pair - rows * kPairs) * pitch + x - columns)->lanes;
      const float* near = from + x;
#pragma GCC unroll 8
      for (int m = 0; m < kMaps; ++m) {
        sums[m] += ahead * at(near + m * size + shift)->lanes + behind * at(near + m * size - shift)->lanes;
      }
    }
    const size_t held = sizeof(float) * std::min(kLanes, job.width - x);
    for (int m = 0; m < kMaps; ++m) {
      const Lanes means = sums[m] * at(inverse + x)->lanes;
      std::memcpy(to + m * size + x, &means, held);
    }
  }
}

CPN_VECTOR_CLONES void step_rows(const WalkJob& job, int which, int64_t begin, int64_t end, int top, int bottom) {
  // Row by row over all maps of an image: a row's weights stay in the nearest cache for all of them.
  for (int64_t first = begin; first < end;) {
    const int64_t image = first / job.classes, last = std::min(end, (image + 1) * job.classes);
    for (int y = top; y < bottom; ++y) {
      for (int64_t map = first, count; map < last; map += count) {
        // Groups of about one size: a map alone loads as many weights as seven do.
        const int64_t groups = (last - map + kTogether - 1) / kTogether;
        count = (last - map + groups - 1) / groups;
        switch (count) {
          case 1: step_row<1>(job, which, image, map, y); break;
          case 2: step_row<2>(job, which, image, map, y); break;
          case 3: step_row<3>(job, which, image, map, y); break;
          case 4: step_row<4>(job, which, image, map, y); break;
          case 5: step_row<5>(job, which, image, map, y); break;
          case 6: step_row<6>(job, which, image, map, y); break;
          default: step_row<kTogether>(job, which, image, map, y);
        }
      }
    }
    first = last;
  }
}

// With a map for each thread, threads need not meet while they walk; with fewer maps they share the rows of all.
void walk(const WalkJob& job, int member, int members, Barrier& meet) {
  const int64_t maps = static_cast<int64_t>(job.batch) * job.classes;
  const int64_t rows = static_cast<int64_t>(job.batch) * (job.height + kReach);
  const auto part = [&](int64_t total, int which) { return total * which / members; };
  for (int64_t row = part(rows, member); row < part(rows, member + 1); ++row) {
    fill_weights(job, row / (job.height + kReach), static_cast<int>(row % (job.height + kReach)) - kReach);
  }
  for (int64_t map = part(maps, member); map < part(maps, member + 1); ++map) fill_map(job, map);
  meet.wait();
  const int64_t inverses = static_cast<int64_t>(job.batch) * job.height;
  for (int64_t row = part(inverses, member); row < part(inverses, member + 1); ++row) {
    fill_inverse(job, row / job.height, static_cast<int>(row % job.height));
  }
  meet.wait();
  const bool apart = maps >= members;
  const int64_t begin = apart ? part(maps, member) : 0, end = apart ? part(maps, member + 1) : maps;
  const int top = apart ? 0 : static_cast<int>(part(job.height, member));
  const int bottom = apart ? job.height : static_cast<int>(part(job.height, member + 1));
  for (int64_t step = 0; step < job.steps; ++step) {
    step_rows(job, static_cast<int>(step % 2), begin, end, top, bottom);
    if (!apart) meet.wait();
  }
  const int result = static_cast<int>(job.steps % 2);
  for (int64_t map = begin; map < end; ++map) {
    for (int y = top; y < bottom; ++y) {
      const float* row = job.map_row(result, map, y);
      std::copy(row, row + job.width, job.output + (map * job.height + y) * job.width);
    }
  }
}

size_t take_workspace(WalkJob& job, Arena& arena) {
  const size_t batch = job.batch, height = job.height;
  job.weights = arena.take<float>(batch * (kReach + height) * kPairs * job.pitch);
  job.inverse = arena.take<float>(batch * height * job.pitch);
  for (float*& maps : job.walking) maps = arena.take<float>(batch * job.classes * job.map_size());
  return arena.used();
}

}  // namespace
}  // namespace cpn

CPN_API int64_t cpn_random_walk_cpu_workspace(int batch, int classes, int height, int width) {
  using namespace cpn;
  if (batch < 0 || classes < 0 || height < 0 || width < 0) return -1;
  WalkJob job{};
  job.batch = batch, job.classes = classes, job.height = height, job.width = width, job.pitch = pitch_of(width);
  Arena arena(nullptr, 0);
  return static_cast<int64_t>(take_workspace(job, arena));
}

// affinity [batch, 34, height, width] as it weighs (entries of pairs that leave the grid are not read), maps
// [batch, classes, height, width] -> output, like maps, after `steps` steps. Output is neither of the inputs.
CPN_API int cpn_random_walk_cpu(const float* affinity, const float* maps, int batch, int classes, int height, int width,
                                int64_t steps, float* output, int threads, void* workspace, int64_t workspace_bytes) {
  using namespace cpn;
  if (batch < 0 || classes < 0 || height < 0 || width < 0 || steps < 0 || threads < 1) return kBadArgument;
  if (static_cast<int64_t>(height) * width > INT32_MAX) return kBadArgument;
  WalkJob job{affinity, maps, output, batch, classes, height, width, steps, pitch_of(width), nullptr, nullptr, {}};
  Arena arena(workspace, static_cast<size_t>(std::max<int64_t>(workspace_bytes, 0)));
  take_workspace(job, arena);
  if (workspace == nullptr || !arena.fits()) return kSmallWorkspace;
  if (batch == 0 || classes == 0 || height == 0 || width == 0) return kOk;
  Barrier barrier(threads), alone(1);
  if (!run_team(threads, [&](int member) { walk(job, member, threads, barrier); })) walk(job, 0, 1, alone);
  return kOk;
}
