// SLIC on the CPU: the rules of superpixels_core.h in loops over rows that compilers turn into vector code.
#include "superpixels_cpu.h"

#include <algorithm>
#include <atomic>
#include <memory>

namespace cpn {
namespace {

// Clusters that the pixels of one cell choose among.
struct Candidates {
  Centre centre[kCandidates];
  int place[kCandidates];
  int32_t cluster[kCandidates + 1];  // by place
  int count = 0;

  Candidates(const Plan& plan, const Centre* centres, int row, int col) {
    for (int at = 0; at < kCandidates; ++at) {
      cluster[at] = cluster_at(plan, row, col, at);
      if (cluster[at] < 0) continue;
      centre[count] = centres[cluster[at]];
      place[count++] = at;
    }
  }
};

CPN_VECTOR_CLONES void nearest_along_row(const int16_t* l, const int16_t* a, const int16_t* b, const int32_t* x, int y,
                                         int length, const Centre* centres, const int* places, int count,
                                         uint32_t* keys) {
  constexpr int kWidth = 16;
  for (int begin = 0; begin < length; begin += kWidth) {
    uint32_t best[kWidth];
    for (int i = 0; i < kWidth; ++i) best[i] = ~0u;
    for (int k = 0; k < count; ++k) {
      const int cl = centres[k].l, ca = centres[k].a, cb = centres[k].b, cx = centres[k].x, dy = y - centres[k].y;
      const uint32_t rest = (static_cast<uint32_t>(dy * dy) << kPlaceBits) | static_cast<uint32_t>(places[k]);
      for (int i = 0; i < kWidth; ++i) {
        const int at = begin + i;
        const int dl = l[at] - cl, da = a[at] - ca, db = b[at] - cb, dx = x[at] - cx;
        const uint32_t distance = static_cast<uint32_t>(dl * dl + da * da + db * db + dx * dx);
        const uint32_t key = (distance << kPlaceBits) + rest;
        best[i] = key < best[i] ? key : best[i];
      }
    }
    for (int i = 0; i < kWidth; ++i) keys[begin + i] = best[i];
  }
}

struct RowSums {
  int64_t l, a, b, x;
  int32_t count;
};

CPN_VECTOR_CLONES uint32_t places_along_row(const uint32_t* keys, int length) {
  uint32_t seen = 0;
  for (int i = 0; i < length; ++i) seen |= 1u << (keys[i] & kPlaceMask);
  return seen;
}

// Sums over the pixels of a row that chose a place. A part of at most 2^14 pixels keeps 32-bit sums within range.
CPN_VECTOR_CLONES RowSums sums_along_row(const int16_t* l, const int16_t* a, const int16_t* b, const uint32_t* keys,
                                         int length, uint32_t place) {
  RowSums sums{0, 0, 0, 0, 0};
  for (int begin = 0; begin < length; begin += 1 << 14) {
    const int end = std::min(length, begin + (1 << 14));
    int32_t sl = 0, sa = 0, sb = 0, sx = 0, count = 0;
    for (int i = begin; i < end; ++i) {
      const int32_t mask = (keys[i] & kPlaceMask) == place ? -1 : 0;
      sl += l[i] & mask, sa += a[i] & mask, sb += b[i] & mask, sx += (i - begin) & mask, count -= mask;
    }
    sums.l += sl, sums.a += sa, sums.b += sb, sums.x += sx + static_cast<int64_t>(begin) * count, sums.count += count;
  }
  return sums;
}

void lab_rows(const Plan& plan, const uint8_t* image, const ImageMemory& memory, int begin, int end) {
  for (int64_t at = static_cast<int64_t>(begin) * plan.width; at < static_cast<int64_t>(end) * plan.width; ++at) {
    const Lab lab = lab_of_rgb(image[3 * at], image[3 * at + 1], image[3 * at + 2]);
    memory.l[at] = static_cast<int16_t>(lab.l);
    memory.a[at] = static_cast<int16_t>(lab.a);
    memory.b[at] = static_cast<int16_t>(lab.b);
  }
}

// Adds a row of a cell to the sums of the clusters that its pixels chose.
void accumulate_row(const Plan& plan, const ImageMemory& memory, const Candidates& candidates, const uint32_t* keys,
                    int y, int left, int length, Sums* sums) {
  const int64_t at = static_cast<int64_t>(y) * plan.width + left;
  for (uint32_t seen = places_along_row(keys, length); seen != 0; seen &= seen - 1) {
    const int place = __builtin_ctz(seen);
    const RowSums row = sums_along_row(memory.l + at, memory.a + at, memory.b + at, keys, length, place);
    const int cluster = candidates.cluster[place];
    const int64_t down = y - plan.top(cluster / plan.cols), across = left - plan.left(cluster % plan.cols);
    sums[cluster].add({row.l, row.a, row.b, row.x + across * row.count, down * row.count, row.count});
  }
}

// One iteration over a row of cells: each pixel chooses, and either the sums or (in the last one) the labels are made.
// Before the first one (`iteration` -1) every pixel belongs to its own cell.
void visit_cells(const Plan& plan, const ImageMemory& memory, int cell_row, int iteration, uint32_t* keys, Sums* sums,
                 int32_t* labels) {
  for (int col = 0; col < plan.cols; ++col) {
    const Candidates candidates(plan, memory.centres, cell_row, col);
    const int left = plan.left(col), length = plan.left(col + 1) - left;
    const int padded = (length + 15) / 16 * 16;
    if (iteration < 0) std::fill(keys, keys + length, 4u);
    const int top = plan.first_visit(iteration, plan.top(cell_row));
    for (int y = top; y < plan.top(cell_row + 1); y += plan.step(iteration)) {
      const int64_t at = static_cast<int64_t>(y) * plan.width + left;
      if (iteration >= 0) {
        nearest_along_row(memory.l + at, memory.a + at, memory.b + at, memory.scaled_x + left, scaled(plan, 256 * y),
                          padded, candidates.centre, candidates.place, candidates.count, keys);
      }
      if (iteration == kIterations - 1) {
        for (int i = 0; i < length; ++i) labels[at + i] = candidates.cluster[keys[i] & kPlaceMask];
      } else {
        accumulate_row(plan, memory, candidates, keys, y, left, length, sums);
      }
    }
  }
}

void update_centres(const Plan& plan, const ImageMemory& memory, int threads, int begin, int end) {
  for (int cluster = begin; cluster < end; ++cluster) {
    Sums total{};
    for (int thread = 0; thread < threads; ++thread) {
      Sums& part = memory.sums[static_cast<int64_t>(thread) * plan.clusters() + cluster];
      total.add(part);
      part = Sums{};
    }
    if (total.count > 0) memory.centres[cluster] = mean_centre(plan, cluster, total);
  }
}

int share(int total, int member, int members) { return static_cast<int>(static_cast<int64_t>(total) * member / members); }

// One member's part of one image; members meet at the barrier.
void segment_image(const Plan& plan, const uint8_t* image, int32_t* labels, ImageMemory& memory, int member,
                   int members, Barrier& barrier) {
  const auto part = [&](int total, auto&& work) { work(share(total, member, members), share(total, member + 1, members)); };
  Sums* sums = memory.sums + static_cast<int64_t>(member) * plan.clusters();
  uint32_t* keys = memory.keys + static_cast<int64_t>(member) * (plan.width + kPadding);
  part(plan.height, [&](int begin, int end) { lab_rows(plan, image, memory, begin, end); });
  std::fill(sums, sums + plan.clusters(), Sums{});
  if (member == 0) {
    for (int x = 0; x < plan.width + kPadding; ++x) memory.scaled_x[x] = scaled(plan, 256 * std::min(x, plan.width));
    for (int16_t* plane : {memory.l, memory.a, memory.b}) std::fill(plane + plan.pixels(), plane + plan.pixels() + kPadding, 0);
    std::fill(memory.centres, memory.centres + plan.clusters(), Centre{});
  }
  barrier.wait();
  for (int iteration = -1; iteration < kIterations; ++iteration) {
    part(plan.rows, [&](int begin, int end) {
      for (int row = begin; row < end; ++row) visit_cells(plan, memory, row, iteration, keys, sums, labels);
    });
    barrier.wait();
    if (iteration == kIterations - 1) break;
    part(plan.clusters(), [&](int begin, int end) { update_centres(plan, memory, members, begin, end); });
    barrier.wait();
  }
  if (member == 0) connect_regions(plan, memory.centres, memory.runs, labels);
  barrier.wait();
}

ImageMemory take_image(Arena& arena, const Plan& plan, int threads) {
  const size_t pixels = plan.pixels();
  ImageMemory memory;
  memory.l = arena.take<int16_t>(pixels + kPadding);
  memory.a = arena.take<int16_t>(pixels + kPadding);
  memory.b = arena.take<int16_t>(pixels + kPadding);
  memory.scaled_x = arena.take<int32_t>(plan.width + kPadding);
  memory.centres = arena.take<Centre>(plan.clusters());
  memory.sums = arena.take<Sums>(static_cast<size_t>(threads) * plan.clusters());
  memory.keys = arena.take<uint32_t>(static_cast<size_t>(threads) * (plan.width + kPadding));
  memory.runs.start = arena.take<int32_t>(pixels + 1);
  memory.runs.parent = arena.take<int32_t>(pixels);
  memory.runs.size = arena.take<int32_t>(pixels);
  memory.runs.target = arena.take<int32_t>(pixels);
  memory.runs.row_begin = arena.take<int32_t>(plan.height + 1);
  memory.runs.ranking = arena.take<int32_t>(pixels);
  memory.runs.count = 0;
  return memory;
}

// How threads are shared out: `teams` images at once, `members` threads on each.
struct Shares {
  int teams, members;

  Shares(int batch, int threads) {
    teams = std::max(1, std::min(batch, threads));
    members = std::max(1, threads / teams);
  }
};

}  // namespace
}  // namespace cpn

CPN_API int64_t cpn_superpixels_cpu_workspace(int batch, int height, int width, int64_t segments, double compactness,
                                              int threads) {
  cpn::Plan plan;
  if (batch < 0 || threads < 1 || !cpn::make_plan(height, width, segments, compactness, plan)) return -1;
  const cpn::Shares shares(batch, threads);
  cpn::Arena arena(nullptr, 0);
  for (int team = 0; team < shares.teams; ++team) cpn::take_image(arena, plan, shares.members);
  return static_cast<int64_t>(arena.used());
}

// images uint8 [batch, height, width, 3] -> labels int32 [batch, height, width]; the workspace is aligned to 64 bytes.
CPN_API int cpn_superpixels_cpu(const uint8_t* images, int32_t* labels, int batch, int height, int width,
                                int64_t segments, double compactness, int threads, void* workspace,
                                int64_t workspace_bytes) {
  using namespace cpn;
  Plan plan;
  if (batch < 0 || threads < 1 || !make_plan(height, width, segments, compactness, plan)) return kBadArgument;
  const Shares shares(batch, threads);
  Arena arena(workspace, static_cast<size_t>(workspace_bytes));
  std::vector<ImageMemory> memory;
  for (int team = 0; team < shares.teams; ++team) memory.push_back(take_image(arena, plan, shares.members));
  if (workspace == nullptr || !arena.fits()) return kSmallWorkspace;
  const auto run = [&](int team, int member, int members, int step, Barrier& barrier) {
    for (int64_t image = team; image < batch; image += step) {
      segment_image(plan, images + 3 * image * plan.pixels(), labels + image * plan.pixels(), memory[team], member,
                    members, barrier);
    }
  };
  std::vector<std::unique_ptr<Barrier>> barriers;
  for (int team = 0; team < shares.teams; ++team) barriers.push_back(std::make_unique<Barrier>(shares.members));
  const bool done = run_team(shares.teams * shares.members, [&](int member) {
    run(member / shares.members, member % shares.members, shares.members, shares.teams, *barriers[member / shares.members]);
  });
  if (!done) {  // no threads to be had: this one does it all
    Barrier alone(1);
    run(0, 0, 1, 1, alone);
  }
  return kOk;
}
