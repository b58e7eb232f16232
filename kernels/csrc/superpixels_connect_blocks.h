// The connectivity pass of superpixels in blocks of threads, and the order of all passes.
#pragma once

#include "superpixels_blocks.h"

namespace cpn {

// Regions are trees of pixels whose root is their smallest pixel. A parent only ever gets smaller, so an older value is
// still an ancestor and the walk ends.
CPN_HD int find_pixel_root(const int32_t* parent, int pixel) {
  for (int above = racy_load(parent + pixel); above != pixel; above = racy_load(parent + pixel)) pixel = above;
  return pixel;
}

// The same, and each pixel on the way is lifted to its grandparent. A pixel below another never becomes a root again, so
// that a lost race for its parent does no harm: what is written is an ancestor of it.
CPN_HD int lift_to_root(int32_t* parent, int pixel) {
  int above = racy_load(parent + pixel);
  while (above != pixel) {
    const int next = racy_load(parent + above);
    if (next == above) return above;
    parent[pixel] = next;
    pixel = next, above = racy_load(parent + pixel);
  }
  return pixel;
}

CPN_HD void join_pixels(int32_t* parent, int one, int other) {
  while (true) {
    one = lift_to_root(parent, one), other = lift_to_root(parent, other);
    if (one == other) return;
    const int low = one < other ? one : other, high = one < other ? other : one;
    const int before = atomic_min(parent + high, low);
    if (before == high) return;  // it was a root still
    one = before, other = low;
  }
}

// blocks of this and all passes below but for the two with one block per image: tiles, 1, batch.
struct StartPass {
  using Shared = NoShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared&) const {
    const Job job = of_image(batch_job, block.z);
    each_pixel(block, job, [&](int pixel) {
      job.parent[pixel] = pixel, job.size[pixel] = 0, job.histogram[pixel] = 0;
      if (pixel == 0) *job.outcome = {{0, 0}, 0, job.plan.pixels()}, job.histogram[job.plan.pixels()] = 0;
    });
  }
};

struct JoinPass {
  using Shared = NoShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared&) const {
    const Job job = of_image(batch_job, block.z);
    const int width = job.plan.width;
    each_pixel(block, job, [&](int pixel) {
      const int32_t cluster = job.labels[pixel];
      if (pixel % width != 0 && job.labels[pixel - 1] == cluster) join_pixels(job.parent, pixel, pixel - 1);
      if (pixel >= width && job.labels[pixel - width] == cluster) join_pixels(job.parent, pixel, pixel - width);
    });
  }
};

struct SizePass {
  using Shared = NoShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared&) const {
    const Job job = of_image(batch_job, block.z);
    each_pixel(block, job, [&](int pixel) {
      const int root = find_pixel_root(job.parent, pixel);
      job.parent[pixel] = root;
      atomic_add(job.size + root, 1);
    });
  }
};

struct HistogramPass {
  using Shared = NoShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared&) const {
    const Job job = of_image(batch_job, block.z);
    each_pixel(block, job, [&](int pixel) {
      if (job.parent[pixel] == pixel) atomic_add(job.histogram + job.size[pixel], 1);
    });
  }
};

// The sizes are cut into as many ranges as there are threads; the one in which the count of regions, from the largest
// down, reaches the number asked for is then walked. blocks: 1, 1, batch.
struct ChoosePass {
  struct Shared {
    uint64_t counts[kBlockThreads];  // by range, from the largest sizes down
    uint64_t scratch[kBlockThreads];
  };
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared& shared) const {
    const Job job = of_image(batch_job, block.z);
    const int sizes = job.plan.pixels() + 1;
    const auto range_end = [&](int range) {
      return static_cast<int>(sizes - static_cast<int64_t>(sizes) * range / kBlockThreads);
    };
    block.each(kBlockThreads, [&](int range) {
      uint64_t count = 0;
      for (int size = range_end(range + 1); size < range_end(range); ++size) count += job.histogram[size];
      shared.counts[range] = count;
    });
    inclusive_scan(block, shared.counts, shared.scratch, kBlockThreads);
    const auto asked = static_cast<uint64_t>(job.plan.segments);
    block.each(kBlockThreads, [&](int range) {
      const uint64_t before = range == 0 ? 0 : shared.counts[range - 1], through = shared.counts[range];
      // With no more regions than asked for, the choice of StartPass stays: all.
      if (before < asked && through >= asked && shared.counts[kBlockThreads - 1] > asked) {
        uint64_t larger = before;
        int size = range_end(range) - 1;
        while (larger + job.histogram[size] < asked) larger += job.histogram[size--];
        job.outcome->choice = Choice{size, static_cast<int>(asked - larger)};
      }
    });
  }
};

CPN_HD uint64_t region_count(const Job& job, int pixel) {  // larger << 32 | equal
  if (job.parent[pixel] != pixel) return 0;
  const int size = job.size[pixel], chosen = job.outcome->choice.size;
  return size > chosen ? uint64_t{1} << 32 : size == chosen ? 1 : 0;
}

CPN_HD int tile_pixel(const Job& job, int tile, int chunk) {  // where a thread's pixels of a tile begin
  constexpr int kChunk = kTilePixels / kBlockThreads;
  const int64_t pixel = static_cast<int64_t>(tile) * kTilePixels + chunk * kChunk;
  return static_cast<int>(pixel < job.plan.pixels() ? pixel : job.plan.pixels());
}

struct TileShared {
  uint64_t counts[kBlockThreads];
  uint64_t scratch[kBlockThreads];
};

template <class Block>
CPN_HD void count_tile(const Block& block, const Job& job, TileShared& shared) {
  block.each(kBlockThreads, [&](int chunk) {
    uint64_t count = 0;
    const int end = tile_pixel(job, block.x, chunk + 1);
    for (int pixel = tile_pixel(job, block.x, chunk); pixel < end; ++pixel) count += region_count(job, pixel);
    shared.counts[chunk] = count;
  });
  inclusive_scan(block, shared.counts, shared.scratch, kBlockThreads);
}

struct CountPass {
  using Shared = TileShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared& shared) const {
    const Job job = of_image(batch_job, block.z);
    count_tile(block, job, shared);
    block.each(1, [&](int) { job.tile_counts[block.x] = shared.counts[kBlockThreads - 1]; });
  }
};

// tile_counts become the counts before each tile. blocks: 1, 1, batch.
struct ScanPass {
  using Shared = TileShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared& shared) const {
    const Job job = of_image(batch_job, block.z);
    const auto begin = [&](int range) { return static_cast<int>(static_cast<int64_t>(job.tiles) * range / kBlockThreads); };
    block.each(kBlockThreads, [&](int range) {
      uint64_t count = 0;
      for (int tile = begin(range); tile < begin(range + 1); ++tile) count += job.tile_counts[tile];
      shared.counts[range] = count;
    });
    inclusive_scan(block, shared.counts, shared.scratch, kBlockThreads);
    block.each(kBlockThreads, [&](int range) {
      uint64_t before = range == 0 ? 0 : shared.counts[range - 1];
      for (int tile = begin(range); tile < begin(range + 1); ++tile) {
        const uint64_t own = job.tile_counts[tile];
        job.tile_counts[tile] = before;
        before += own;
      }
    });
  }
};

// Kept regions get their label; each of the others, the region that its first pixel is merged into.
struct NumberPass {
  using Shared = TileShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared& shared) const {
    const Job job = of_image(batch_job, block.z);
    count_tile(block, job, shared);
    block.each(kBlockThreads, [&](int chunk) {
      uint64_t before = job.tile_counts[block.x] + (chunk == 0 ? 0 : shared.counts[chunk - 1]);
      const int end = tile_pixel(job, block.x, chunk + 1);
      for (int pixel = tile_pixel(job, block.x, chunk); pixel < end; ++pixel) {
        if (job.parent[pixel] != pixel) continue;
        const int larger = static_cast<int>(before >> 32), equal = static_cast<int>(before & 0xffffffffu);
        before += region_count(job, pixel);
        number(job, pixel, larger, equal);
      }
    });
  }

 private:
  static CPN_HD void number(const Job& job, int pixel, int larger, int equal) {
    const Choice& choice = job.outcome->choice;
    if (choice.keeps(job.size[pixel], equal)) {
      job.target[pixel] = pixel;
      job.size[pixel] = choice.number(larger, equal);
    } else if (pixel == 0) {
      job.target[0] = 0;
      job.outcome->lost = 1;
    } else {
      job.target[pixel] = job.parent[merge_neighbour(job.plan, job.centres, job.labels, pixel)];
    }
  }
};

// Chains of merges are followed to their end.
struct ResolvePass {
  using Shared = NoShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared&) const {
    const Job job = of_image(batch_job, block.z);
    each_pixel(block, job, [&](int pixel) {
      if (job.parent[pixel] == pixel) job.target[pixel] = find_pixel_root(job.target, pixel);
    });
  }
};

CPN_HD int kept_root(const Job& job, int pixel) { return job.target[job.parent[pixel]]; }

// Where the region of pixel 0 is not kept: the first pixel beside it and what was merged into it.
struct LostPass {
  using Shared = NoShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared&) const {
    const Job job = of_image(batch_job, block.z);
    if (job.outcome->lost == 0) return;
    const int width = job.plan.width, pixels = job.plan.pixels();
    each_pixel(block, job, [&](int pixel) {
      if (kept_root(job, pixel) == 0) return;
      const int x = pixel % width;
      const bool beside = (x > 0 && kept_root(job, pixel - 1) == 0) || (x + 1 < width && kept_root(job, pixel + 1) == 0) ||
                          (pixel >= width && kept_root(job, pixel - width) == 0) ||
                          (pixel + width < pixels && kept_root(job, pixel + width) == 0);
      if (beside) atomic_min(&job.outcome->beside, pixel);
    });
  }
};

struct LabelPass {
  using Shared = NoShared;
  Job batch_job;

  template <class Block>
  CPN_HD void operator()(const Block& block, Shared&) const {
    const Job job = of_image(batch_job, block.z);
    each_pixel(block, job, [&](int pixel) {
      int root = kept_root(job, pixel);
      if (root == 0 && job.outcome->lost != 0) root = kept_root(job, job.outcome->beside);
      job.labels[pixel] = job.size[root];
    });
  }
};

// launch(pass, blocks in x, in y, in z) runs a pass after the one before. The clusters of all pixels:
template <class Launcher>
void run_clustering(const Launcher& launch, const Job& job) {
  const int clusters = job.plan.clusters();
  launch(LabPass{job}, job.tiles, 1, job.batch);
  for (int iteration = -1; iteration < kIterations; ++iteration) {
    launch(VisitPass{job, iteration}, clusters * job.chunks, 1, job.batch);
    if (iteration == kIterations - 1) break;
    launch(CentrePass{job}, (clusters + kBlockThreads - 1) / kBlockThreads, 1, job.batch);
  }
}

// From clusters to connected regions.
template <class Launcher>
void run_connectivity(const Launcher& launch, const Job& job) {
  const int tiles = job.tiles, batch = job.batch;
  launch(StartPass{job}, tiles, 1, batch);
  launch(JoinPass{job}, tiles, 1, batch);
  launch(SizePass{job}, tiles, 1, batch);
  launch(HistogramPass{job}, tiles, 1, batch);
  launch(ChoosePass{job}, 1, 1, batch);
  launch(CountPass{job}, tiles, 1, batch);
  launch(ScanPass{job}, 1, 1, batch);
  launch(NumberPass{job}, tiles, 1, batch);
  launch(ResolvePass{job}, tiles, 1, batch);
  launch(LostPass{job}, tiles, 1, batch);
  launch(LabelPass{job}, tiles, 1, batch);
}

}  // namespace cpn
