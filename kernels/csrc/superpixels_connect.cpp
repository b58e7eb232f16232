// The connectivity pass on the CPU, on runs of pixels: there are some tens of times fewer of them than pixels.
#include <algorithm>
#include <functional>

#include "superpixels_cpu.h"

namespace cpn {
namespace {

int find_root(int32_t* parent, int run) {
  while (parent[run] != run) run = parent[run] = parent[parent[run]];
  return run;
}

void unite(int32_t* parent, int one, int other) {
  one = find_root(parent, one), other = find_root(parent, other);
  if (one < other) parent[other] = one;
  else parent[one] = other;
}

CPN_VECTOR_CLONES int split_row(const int32_t* labels, int width, int first, int32_t* starts) {
  constexpr int kBlock = 16;
  int count = 0;
  starts[count++] = first;
  int x = 1;
  for (; x + kBlock <= width; x += kBlock) {
    int32_t change = 0;
    for (int i = 0; i < kBlock; ++i) change |= labels[x + i] ^ labels[x + i - 1];
    if (change == 0) continue;
    for (int i = 0; i < kBlock; ++i) {
      if (labels[x + i] != labels[x + i - 1]) starts[count++] = first + x + i;
    }
  }
  for (; x < width; ++x) {
    if (labels[x] != labels[x - 1]) starts[count++] = first + x;
  }
  return count;
}

void find_runs(const Plan& plan, const int32_t* labels, Runs& runs) {
  runs.count = 0;
  for (int y = 0; y < plan.height; ++y) {
    const int first = y * plan.width;
    runs.row_begin[y] = runs.count;
    runs.count += split_row(labels + first, plan.width, first, runs.start + runs.count);
  }
  runs.row_begin[plan.height] = runs.count;
  runs.start[runs.count] = plan.pixels();
}

// Joins runs of one cluster that touch; afterwards parent[run] is the first run of its region.
void join_runs(const Plan& plan, const int32_t* labels, Runs& runs) {
  for (int run = 0; run < runs.count; ++run) runs.parent[run] = run, runs.size[run] = 0;
  for (int y = 1; y < plan.height; ++y) {
    int above = runs.row_begin[y - 1];
    for (int run = runs.row_begin[y]; run < runs.row_begin[y + 1];) {
      const int above_end = runs.start[above + 1] + plan.width, end = runs.start[run + 1];
      if (labels[runs.start[above]] == labels[runs.start[run]]) unite(runs.parent, above, run);
      if (above_end <= end) ++above;
      if (end <= above_end) ++run;
    }
  }
  for (int run = 0; run < runs.count; ++run) {
    runs.parent[run] = find_root(runs.parent, run);
    runs.size[runs.parent[run]] += runs.start[run + 1] - runs.start[run];
  }
}

Choice choose(const Plan& plan, const Runs& runs) {
  int found = 0;
  for (int run = 0; run < runs.count; ++run) {
    if (runs.parent[run] == run) runs.ranking[found++] = runs.size[run];
  }
  if (found <= plan.segments) return {0, 0};
  std::nth_element(runs.ranking, runs.ranking + plan.segments - 1, runs.ranking + found, std::greater<>());
  const int size = runs.ranking[plan.segments - 1];
  const auto larger = std::count_if(runs.ranking, runs.ranking + found, [&](int32_t other) { return other > size; });
  return {size, plan.segments - static_cast<int>(larger)};
}

int run_of_pixel(const Plan& plan, const Runs& runs, int pixel) {
  const int y = pixel / plan.width;
  const int32_t* begin = runs.start + runs.row_begin[y];
  return static_cast<int>(std::upper_bound(begin, static_cast<const int32_t*>(runs.start + runs.row_begin[y + 1]), pixel) -
                          runs.start) - 1;
}

// The region of pixel 0 is not kept, and what was merged into it has no label yet: all of it goes to the region of the
// first pixel in raster order that lies beside it.
int beside_first(const Plan& plan, const Runs& runs) {
  const auto lost = [&](int pixel) { return runs.target[runs.parent[run_of_pixel(plan, runs, pixel)]] == 0; };
  for (int pixel = 1; pixel < plan.pixels(); ++pixel) {
    if (lost(pixel)) continue;
    const int x = pixel % plan.width;
    if ((x > 0 && lost(pixel - 1)) || (x + 1 < plan.width && lost(pixel + 1)) ||
        (pixel >= plan.width && lost(pixel - plan.width)) ||
        (pixel + plan.width < plan.pixels() && lost(pixel + plan.width))) {
      return runs.target[runs.parent[run_of_pixel(plan, runs, pixel)]];
    }
  }
  return 0;
}

}  // namespace

void connect_regions(const Plan& plan, const Centre* centres, Runs& runs, int32_t* labels) {
  find_runs(plan, labels, runs);
  join_runs(plan, labels, runs);
  const Choice choice = choose(plan, runs);
  // Roots come in raster order, and a region is merged into an earlier one: its target is final when it is met.
  int larger = 0, equal = 0;
  bool first_kept = true;
  for (int run = 0; run < runs.count; ++run) {
    if (runs.parent[run] != run) continue;
    const int size = runs.size[run];
    if (choice.keeps(size, equal)) {
      runs.target[run] = run;
      runs.size[run] = choice.number(larger, equal);  // the label; the size is not needed any more
    } else if (run == 0) {
      runs.target[run] = 0, first_kept = false;
    } else {
      const int neighbour = merge_neighbour(plan, centres, labels, runs.start[run]);
      runs.target[run] = runs.target[runs.parent[run_of_pixel(plan, runs, neighbour)]];
    }
    larger += size > choice.size, equal += size == choice.size;
  }
  const int instead = first_kept ? 0 : beside_first(plan, runs);
  for (int run = 0; run < runs.count; ++run) {
    int target = runs.target[runs.parent[run]];
    if (target == 0) target = instead;
    std::fill(labels + runs.start[run], labels + runs.start[run + 1], runs.size[target]);
  }
}

}  // namespace cpn
