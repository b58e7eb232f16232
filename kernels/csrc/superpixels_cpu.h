// The pieces of the CPU backend of superpixels.
#pragma once

#include "superpixels_core.h"
#include "thread_team.h"

namespace cpn {

// Runs of pixels of one cluster along the rows, in raster order; the connectivity pass works on them.
struct Runs {
  int32_t* start;       // first pixel; start[count] = number of pixels
  int32_t* parent;      // union-find; the root of a region is its first run
  int32_t* size;        // pixels of the region, at its root
  int32_t* target;      // at a root: the root it is merged into, itself when kept; then the final label
  int32_t* row_begin;   // [height + 1] first run of each row
  int32_t* ranking;     // sizes of the regions, for the choice
  int count;
};

// One image's memory.
struct ImageMemory {
  int16_t* l;  // [pixels + kPadding] each
  int16_t* a;
  int16_t* b;
  int32_t* scaled_x;    // [width + kPadding]
  Centre* centres;      // [clusters]
  Sums* sums;           // [threads][clusters]
  uint32_t* keys;       // [threads][width + kPadding]
  Runs runs;
};

constexpr int kPadding = 64;  // vector loops run past the end of a cell by less than this

// Makes the clusters' map connected: labels (clusters on entry) become regions 0..n-1 in raster order.
void connect_regions(const Plan& plan, const Centre* centres, Runs& runs, int32_t* labels);

}  // namespace cpn
