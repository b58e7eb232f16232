// SLIC superpixels (Achanta et al., PAMI 2012): the rules that the CPU and the GPU backend share, in integers only.
//
// Clusters start on a grid of cells. A pixel chooses among the clusters of its own and the eight neighbouring cells, so
// the pixels of a cluster stay within the 3 x 3 cells around it. Distance is squared Euclidean in (L, a, b, x, y), with
// positions scaled so that one cell side is worth `compactness` units of Lab.
#pragma once

#include <cmath>

#include "lab_table.h"

namespace cpn {

constexpr int kMaxSide = 32767;
constexpr int64_t kMaxPixels = int64_t{1} << 28;
constexpr int kCandidates = 9;
constexpr int kIterations = 10;

// A candidate is ranked by distance, then by its place in the 3 x 3 neighbourhood: both in one word.
constexpr int kPlaceBits = 4;
constexpr uint32_t kPlaceMask = (1u << kPlaceBits) - 1;
constexpr uint32_t kNoPlace = kPlaceMask;

struct Plan {
  int height, width;
  int rows, cols;      // grid of cells, rows * cols clusters
  int segments;        // regions asked for, at most the number of pixels
  int row_stride;      // all iterations but the last look at every row_stride-th row
  int64_t scale;       // Lab units per pixel of distance, 16 fractional bits

  CPN_HD int pixels() const { return height * width; }
  CPN_HD int clusters() const { return rows * cols; }
  CPN_HD int top(int row) const { return static_cast<int>(static_cast<int64_t>(row) * height / rows); }
  CPN_HD int left(int col) const { return static_cast<int>(static_cast<int64_t>(col) * width / cols); }
  // The rows that an iteration looks at: another third (say) each time, all in the last. `iteration` -1 sets up.
  CPN_HD int step(int iteration) const { return iteration == kIterations - 1 ? 1 : row_stride; }
  CPN_HD int first_visit(int iteration, int begin) const {  // the first such row from `begin` on
    const int every = step(iteration), phase = (begin + iteration + 1) % every;
    return phase == 0 ? begin : begin + every - phase;
  }
};

struct Centre {
  int l, a, b;  // in Lab units
  int x, y;     // scaled
};

// Sums over the pixels of a cluster, positions relative to the top left corner of the cluster's own cell (which they
// may leave: x and y may be negative).
struct Sums {
  int64_t l, a, b, x, y, count;

  CPN_HD void add(const Sums& other) {
    l += other.l, a += other.a, b += other.b, x += other.x, y += other.y, count += other.count;
  }
};

// The grid with at least `segments` cells that has few too many and cells near squares.
inline void choose_grid(Plan& plan) {
  const double square = std::sqrt(static_cast<double>(plan.segments) * plan.height / plan.width);
  const double ideal = square < plan.segments ? square : plan.segments;
  double best = -1;
  const int last = static_cast<int>(std::ceil(ideal)) + 1;
  for (int rows = last - 2 > 1 ? last - 2 : 1; rows <= last || best < 0; ++rows) {
    if (rows > plan.height) break;
    const int cols = (plan.segments + rows - 1) / rows;
    if (cols > plan.width) continue;
    const double excess = static_cast<double>(rows) * cols / plan.segments - 1;
    const double aspect = (static_cast<double>(plan.height) / rows) / (static_cast<double>(plan.width) / cols);
    const double cost = excess + 0.25 * (aspect > 1 ? aspect - 1 : 1 / aspect - 1);
    if (best < 0 || cost < best) best = cost, plan.rows = rows, plan.cols = cols;
  }
}

// False for sizes outside the limits.
inline bool make_plan(int height, int width, int64_t segments, double compactness, Plan& plan) {
  if (height < 1 || width < 1 || height > kMaxSide || width > kMaxSide || segments < 1) return false;
  plan.rows = plan.cols = 1;
  const int64_t pixels = static_cast<int64_t>(height) * width;
  if (pixels > kMaxPixels || !(compactness > 0)) return false;
  plan.height = height, plan.width = width;
  plan.segments = static_cast<int>(segments < pixels ? segments : pixels);
  choose_grid(plan);
  const double cell_height = std::ceil(static_cast<double>(height) / plan.rows);
  const double cell_width = std::ceil(static_cast<double>(width) / plan.cols);
  const double side = std::sqrt(static_cast<double>(pixels) / plan.clusters());
  // A pixel is less than three cells from a candidate's centre along each axis. The squared distance must stay below
  // 2^28 with the colour's part (< 2^23) and rounding, for kPlaceBits more bits to fit: past a compactness of a few
  // hundred, where segments are squares anyway, the scale rises no further.
  const double reach = 3 * std::sqrt(cell_height * cell_height + cell_width * cell_width);
  const double limit = 15900.0 / reach;
  const double wanted = kLabUnit * compactness / side;
  plan.scale = static_cast<int64_t>((wanted < limit ? wanted : limit) * 65536);
  const int lowest = height / plan.rows;  // every cell has at least row_stride rows, so each visit meets all cells
  plan.row_stride = lowest >= 12 ? 3 : lowest >= 8 ? 2 : 1;
  return true;
}

// A position in 1/256 pixel -> Lab units.
CPN_HD int scaled(const Plan& plan, int64_t position) {
  return static_cast<int>((position * plan.scale) >> 24);
}

CPN_HD int64_t round_divide(int64_t sum, int64_t count) {  // to nearest, halves up; count > 0
  const int64_t twice = 2 * sum + count, whole = twice / (2 * count);
  return whole - (twice % (2 * count) < 0 ? 1 : 0);
}

CPN_HD Centre mean_centre(const Plan& plan, int cluster, const Sums& sums) {
  const int row = cluster / plan.cols, col = cluster % plan.cols;
  Centre centre;
  centre.l = static_cast<int>(round_divide(sums.l, sums.count));
  centre.a = static_cast<int>(round_divide(sums.a, sums.count));
  centre.b = static_cast<int>(round_divide(sums.b, sums.count));
  centre.x = scaled(plan, round_divide(256 * sums.x, sums.count) + 256 * plan.left(col));
  centre.y = scaled(plan, round_divide(256 * sums.y, sums.count) + 256 * plan.top(row));
  return centre;
}

// Cluster at a place (0..8) of the neighbourhood of a cell; -1 outside the grid.
CPN_HD int cluster_at(const Plan& plan, int row, int col, int place) {
  const int r = row + place / 3 - 1, c = col + place % 3 - 1;
  return r < 0 || r >= plan.rows || c < 0 || c >= plan.cols ? -1 : r * plan.cols + c;
}

CPN_HD uint32_t candidate_key(const Centre& centre, int place, int l, int a, int b, int x, int y) {
  const int dl = l - centre.l, da = a - centre.a, db = b - centre.b, dx = x - centre.x, dy = y - centre.y;
  const uint32_t distance = static_cast<uint32_t>(dl * dl + da * da + db * db + dx * dx + dy * dy);
  return (distance << kPlaceBits) | static_cast<uint32_t>(place);
}

CPN_HD int colour_distance(const Centre& one, const Centre& other) {
  const int dl = one.l - other.l, da = one.a - other.a, db = one.b - other.b;
  return dl * dl + da * da + db * db;
}

// Where a region goes that is not kept. `first` is its first pixel in raster order, so the pixels to the left and above
// belong to regions that begin earlier: following these choices never goes round in a circle. The one whose cluster is
// nearer in colour is taken, the left one on ties. The region of pixel 0 has neither, and stays (see Choice).
CPN_HD int merge_neighbour(const Plan& plan, const Centre* centres, const int32_t* clusters, int first) {
  const bool has_left = first % plan.width != 0, has_up = first >= plan.width;
  if (!has_left) return has_up ? first - plan.width : first;
  if (!has_up) return first - 1;
  const Centre& own = centres[clusters[first]];
  const int left = colour_distance(own, centres[clusters[first - 1]]);
  const int up = colour_distance(own, centres[clusters[first - plan.width]]);
  return left <= up ? first - 1 : first - plan.width;
}

// Which regions are kept: the `segments` largest, the earlier one on ties. That is all with more than `size` pixels, and
// of those with exactly `size` the first `quota`.
struct Choice {
  int size;
  int quota;

  // Number of kept regions before one, from the counts of larger and of equally large regions before it.
  CPN_HD int number(int larger, int equal) const { return larger + (equal < quota ? equal : quota); }
  CPN_HD bool keeps(int region_size, int equal_before) const {
    return region_size > size || (region_size == size && equal_before < quota);
  }
};

}  // namespace cpn
