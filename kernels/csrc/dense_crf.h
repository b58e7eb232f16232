// The permutohedral lattice (Adams, Baek and Davis 2010) as tables, and the geometry behind them.
//
// A pixel's feature vector, in units of the Gaussian's standard deviation, lies in one simplex of D + 1 lattice points.
// Point number k of a simplex has all coordinates congruent to k modulo D + 1. Coordinates 1 .. D (the first follows:
// they sum to 0) are packed into one number, linear in them, so that a step along an axis adds a constant.
#pragma once

#include <algorithm>

#include "portable.h"

namespace cpn {

constexpr int kMaxDimensions = 5;
constexpr double kLargestKey = 9007199254740992.0;  // 2^53: keys are exact in a double

// How features become keys.
struct LatticePlan {
  int height, width, dimensions;
  double inverse[kMaxDimensions];     // 1 / standard deviation of x, y [, red, green, blue]
  double scale[kMaxDimensions];       // to the plane in which the lattice lies
  double stride[kMaxDimensions + 1];  // of a coordinate in the key; that of the first is 0
  double stride_sum;
  double offset;  // makes keys positive

  CPN_HD int corners() const { return dimensions + 1; }
  CPN_HD int64_t pixels() const { return static_cast<int64_t>(height) * width; }
  CPN_HD int64_t entries() const { return pixels() * corners(); }
  // The key's change by a step along an axis: -1 in all coordinates, and D more in that one.
  CPN_HD double step(int axis) const { return corners() * stride[axis] - stride_sum; }
};

// Pixels are worked on in strips of this many columns, each row by row: the lattice points of a neighbourhood are then
// still in a near cache when the next row comes. All tables are in this order.
constexpr int64_t kStrip = 32;

// Calls run(position, pixel, count) for the pieces of positions begin .. end whose pixels lie side by side.
template <class Run>
void for_runs(int64_t height, int64_t width, int64_t begin, int64_t end, Run&& run) {
  while (begin < end) {
    const int64_t strip = begin / (kStrip * height), across = std::min(kStrip, width - strip * kStrip);
    const int64_t within = begin - strip * kStrip * height, y = within / across, x = within % across;
    const int64_t count = std::min(across - x, end - begin);
    run(begin, y * width + strip * kStrip + x, count);
    begin += count;
  }
}

// A lattice of one image: what a Gaussian filter needs. The C interface's struct, mirrored in native.py.
struct Lattice {
  int32_t corners;            // D + 1
  int32_t points;             // lattice points; one more row, of zeros, stands for those that are not there
  float compat;               // weight of the kernel
  int32_t* corner_points;     // [pixels][corners] lattice point
  float* corner_weights;      // [pixels][corners] barycentric, times the pixel's normalisation
  int32_t* neighbours;        // [corners][points][2] one step forth and back along each axis; `points` where none is
  int32_t* point_begin;       // [points + 1] into the two below, or null: entries sorted by point, then pixel
  int32_t* point_pixels;      // [pixels * corners]
  float* point_weights;       // [pixels * corners]
};

}  // namespace cpn
