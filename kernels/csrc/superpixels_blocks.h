// SLIC as passes of blocks of threads: what the GPU runs. Sums are integers added atomically and the union-find ends at
// the smallest pixel of a region whatever the order, so every order gives the bits of the CPU backend.
#pragma once

#include "blocks.h"
#include "superpixels_core.h"

namespace cpn {

struct Pixel {
  int16_t l, a, b, unused;
};

// Per image: what the connectivity pass found.
struct Outcome {
  Choice choice;
  int32_t lost;    // 1 where the region of pixel 0 is not kept
  int32_t beside;  // first pixel beside that region
};

static_assert(sizeof(Sums) == 6 * sizeof(int64_t), "sums are also added up one by one");

constexpr int kTilePixels = 2048;

struct Job {
  Plan plan;
  int batch, tiles;
  int chunks, chunk_rows;  // a cell's rows are shared by `chunks` blocks
  const uint8_t* images;   // [batch][pixels][3]
  int32_t* labels;         // [batch][pixels] clusters, then regions
  Pixel* lab;              // [batch][pixels]
  Centre* centres;         // [batch][clusters]
  Sums* sums;              // [batch][clusters]
  int32_t* parent;         // [batch][pixels] union-find, then the region's first pixel
  int32_t* size;           // [batch][pixels] at a first pixel: pixels of the region, then the label of a kept one
  int32_t* target;         // [batch][pixels] at a first pixel: first pixel of the region it is merged into
  int32_t* histogram;      // [batch][pixels + 1] regions by size
  uint64_t* tile_counts;   // [batch][tiles] larger << 32 | equal regions
  Outcome* outcome;        // [batch]
};

inline Job make_job(const Plan& plan, int batch, const uint8_t* images, int32_t* labels, Arena& arena) {
  Job job{};
  const size_t pixels = static_cast<size_t>(batch) * plan.pixels();
  job.plan = plan, job.batch = batch, job.images = images, job.labels = labels;
  job.tiles = (plan.pixels() + kTilePixels - 1) / kTilePixels;
  const int cell_width = (plan.width + plan.cols - 1) / plan.cols, cell_height = (plan.height + plan.rows - 1) / plan.rows;
  job.chunk_rows = cell_width < kTilePixels ? kTilePixels / cell_width : 1;
  job.chunks = (cell_height + job.chunk_rows - 1) / job.chunk_rows;
  job.lab = arena.take<Pixel>(pixels);
  job.centres = arena.take<Centre>(static_cast<size_t>(batch) * plan.clusters());
  job.sums = arena.take<Sums>(static_cast<size_t>(batch) * plan.clusters());
  job.parent = arena.take<int32_t>(pixels);
  job.size = arena.take<int32_t>(pixels);
  job.target = arena.take<int32_t>(pixels);
  job.histogram = arena.take<int32_t>(pixels + batch);
  job.tile_counts = arena.take<uint64_t>(static_cast<size_t>(batch) * job.tiles);
  job.outcome = arena.take<Outcome>(batch);
  return job;
}

// The job of one image of the batch.
CPN_HD Job of_image(Job job, int image) {
  const int64_t pixels = static_cast<int64_t>(image) * job.plan.pixels();
  const int64_t clusters = static_cast<int64_t>(image) * job.plan.clusters();
  job.images += 3 * pixels, job.labels += pixels, job.lab += pixels;
  job.centres += clusters, job.sums += clusters;
  job.parent += pixels, job.size += pixels, job.target += pixels;
  job.histogram += pixels + image, job.tile_counts += static_cast<int64_t>(image) * job.tiles, job.outcome += image;
  return job;
}

struct NoShared {};

// Calls work(pixel) for the pixels of a tile.
template <class Block, class Work>
CPN_HD void each_pixel(const Block& block, const Job& job, Work&& work) {
  const int begin = block.x * kTilePixels, left = job.plan.pixels() - begin;
  block.each(left < kTilePixels ? left : kTilePixels, [&](int i) { work(begin + i); });
}

// blocks: tiles, 1, batch.
struct LabPass {
  using Shared = NoShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared&) const {
    const Job job = of_image(batch_job, block.z);
    each_pixel(block, job, [&](int pixel) {
      const uint8_t* rgb = job.images + 3 * static_cast<int64_t>(pixel);
      const Lab lab = lab_of_rgb(rgb[0], rgb[1], rgb[2]);
      job.lab[pixel] = {static_cast<int16_t>(lab.l), static_cast<int16_t>(lab.a), static_cast<int16_t>(lab.b), 0};
      if (pixel < job.plan.clusters()) job.sums[pixel] = Sums{}, job.centres[pixel] = Centre{};
    });
  }
};

// Pixels of a part of a cell choose their cluster; the sums (or, in the last iteration, the labels) are made.
// blocks: clusters * chunks, 1, batch.
struct VisitPass {
  static constexpr int kCopies = 8;  // of the sums, so that fewer threads meet at one address

  struct Shared {
    Centre centres[kCandidates];
    int32_t cluster[kCandidates];
    int32_t sums[kCopies][kCandidates][6];
  };

  Job batch_job;
  int iteration;  // -1: every pixel belongs to its own cell

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared& shared) const {
    const Job job = of_image(batch_job, block.z);
    const Plan& plan = job.plan;
    const int row = block.x / job.chunks / plan.cols, col = block.x / job.chunks % plan.cols;
    const int left = plan.left(col), width = plan.left(col + 1) - left;
    const int begin = plan.top(row) + block.x % job.chunks * job.chunk_rows;
    const int end = begin + job.chunk_rows < plan.top(row + 1) ? begin + job.chunk_rows : plan.top(row + 1);
    const int top = plan.first_visit(iteration, begin), step = plan.step(iteration);
    const int pixels = end > top ? (end - top + step - 1) / step * width : 0;
    block.each(kCandidates, [&](int place) {
      const int cluster = cluster_at(plan, row, col, place);
      shared.cluster[place] = cluster;
      if (cluster >= 0) shared.centres[place] = job.centres[cluster];
    });
    block.each(kCopies * kCandidates * 6, [&](int i) { (&shared.sums[0][0][0])[i] = 0; });
    block.each(pixels, [&](int i) {
      const int x = left + i % width, y = top + i / width * step;
      const int at = y * plan.width + x;
      const Pixel pixel = job.lab[at];
      const int place = iteration < 0 ? 4 : nearest(plan, shared, pixel, x, y);
      if (iteration == kIterations - 1) job.labels[at] = shared.cluster[place];
      else accumulate(plan, shared.sums[i / 32 % kCopies][place], shared.cluster[place], pixel, x, y);
    });
    if (iteration == kIterations - 1) return;
    block.each(kCandidates * 6, [&](int i) {
      const int cluster = shared.cluster[i / 6];
      if (cluster < 0) return;
      int64_t total = 0;
      for (int copy = 0; copy < kCopies; ++copy) total += shared.sums[copy][i / 6][i % 6];
      if (total != 0) atomic_add(&job.sums[cluster].l + i % 6, total);
    });
  }

 private:
  static CPN_HD int nearest(const Plan& plan, const Shared& shared, const Pixel& pixel, int x, int y) {
    const int scaled_x = scaled(plan, int64_t{256} * x), scaled_y = scaled(plan, int64_t{256} * y);
    uint32_t best = ~0u;
    for (int place = 0; place < kCandidates; ++place) {
      if (shared.cluster[place] < 0) continue;
      const uint32_t key =
          candidate_key(shared.centres[place], place, pixel.l, pixel.a, pixel.b, scaled_x, scaled_y);
      best = key < best ? key : best;
    }
    return static_cast<int>(best & kPlaceMask);
  }

  static CPN_HD void accumulate(const Plan& plan, int32_t (&sums)[6], int cluster, const Pixel& pixel, int x, int y) {
    atomic_add(&sums[0], int32_t{pixel.l});
    atomic_add(&sums[1], int32_t{pixel.a});
    atomic_add(&sums[2], int32_t{pixel.b});
    atomic_add(&sums[3], int32_t{x - plan.left(cluster % plan.cols)});
    atomic_add(&sums[4], int32_t{y - plan.top(cluster / plan.cols)});
    atomic_add(&sums[5], int32_t{1});
  }
};

// blocks: clusters / kBlockThreads, 1, batch.
struct CentrePass {
  using Shared = NoShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared&) const {
    const Job job = of_image(batch_job, block.z);
    block.each(kBlockThreads, [&](int i) {
      const int cluster = block.x * kBlockThreads + i;
      if (cluster >= job.plan.clusters()) return;
      if (job.sums[cluster].count > 0) job.centres[cluster] = mean_centre(job.plan, cluster, job.sums[cluster]);
      job.sums[cluster] = Sums{};
    });
  }
};

}  // namespace cpn
