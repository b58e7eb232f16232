// The CP triplet on the CPU in one pass over the pixels: three views and the count of visible pixels.
#include <algorithm>

#include "philox.h"
#include "thread_team.h"

namespace cpn {
namespace {

constexpr int64_t kTableSize = 65536;  // patches whose draw is looked up; of others it is made at every pixel
constexpr int kChunk = 1024;           // pixels whose states are made before they are written

enum State : uint8_t { kPadding, kVisible, kHidden };  // in no view; in I and I_h; in I and I_hbar

struct TripletJob {
  const uint8_t* images;  // [batch][pixels][3]
  const void* patches;    // [batch][pixels] patch ids, or [batch] sides of a grid
  const int64_t* keys;    // [batch]
  uint64_t threshold;     // a patch is hidden where its word is below
  const void* colours;    // [3][256] normalised value of every 8-bit value, as it is to be written
  int batch, width;
  int64_t pixels;
  void* triplet;          // [3][batch] images, [pixels][3] or [3][pixels] each
  int64_t* counts;        // [batch][2] pixels of the image, and visible ones; added to
  uint8_t* states;        // [batch][kTableSize] of patches
  int32_t* table_sizes;   // [batch]
};

uint8_t draw(const TripletJob& job, int image, int64_t patch) {
  const uint32_t word = philox_first_word(static_cast<uint64_t>(job.keys[image]), static_cast<uint32_t>(patch));
  return word < job.threshold ? kHidden : kVisible;
}

uint8_t state_of(const TripletJob& job, int image, int64_t patch) {
  return patch < job.table_sizes[image] ? job.states[image * kTableSize + patch] : draw(job, image, patch);
}

// Patches given pixel by pixel.
template <class Id>
struct Map {
  static int64_t patch_count(const TripletJob& job, int image) {
    const Id* ids = static_cast<const Id*>(job.patches) + image * job.pixels;
    Id largest = -1;
    for (int64_t at = 0; at < job.pixels; ++at) largest = std::max(largest, ids[at]);
    return std::min<int64_t>(largest, kTableSize) + 1;
  }

  static void states(const TripletJob& job, int image, int64_t begin, int count, uint8_t* out) {
    const Id* ids = static_cast<const Id*>(job.patches) + image * job.pixels + begin;
    const uint8_t* table = job.states + image * kTableSize;
    const int64_t size = job.table_sizes[image];
    for (int i = 0; i < count; ++i) {
      const int64_t patch = ids[i];
      out[i] = patch < 0 ? static_cast<uint8_t>(kPadding) : patch < size ? table[patch] : draw(job, image, patch);
    }
  }
};

// Squares of one side from the upper left corner, counted row by row; cut at the right and lower border.
template <class Id>
struct Grid {
  static int64_t side(const TripletJob& job, int image) { return static_cast<const Id*>(job.patches)[image]; }
  static int64_t across(const TripletJob& job, int64_t side) { return (job.width - 1) / side + 1; }

  static int64_t patch_count(const TripletJob& job, int image) {
    const int64_t side_ = side(job, image), height = job.pixels / job.width;
    return across(job, side_) * ((height - 1) / side_ + 1);
  }

  static void states(const TripletJob& job, int image, int64_t begin, int count, uint8_t* out) {
    const int64_t side_ = side(job, image), end = begin + count;
    for (int64_t at = begin; at < end;) {
      const int64_t y = at / job.width, x = at % job.width;
      const int64_t run = std::min({side_ - x % side_, job.width - x, end - at});
      std::fill_n(out + (at - begin), run, state_of(job, image, y / side_ * across(job, side_) + x / side_));
      at += run;
    }
  }
};

template <class Patches>
void fill_table(const TripletJob& job, int image) {
  const int64_t size = std::min(Patches::patch_count(job, image), kTableSize);
  for (int64_t patch = 0; patch < size; ++patch) job.states[image * kTableSize + patch] = draw(job, image, patch);
  job.table_sizes[image] = static_cast<int32_t>(size);
}

// Values are written with the bits of the normalised colour under an all-or-nothing mask. Pixels beside pixels, or
// plane by plane: whichever way, few streams are written at once.
template <class Bits>
void write_channels_last(const TripletJob& job, int image, int64_t begin, int count, const uint8_t* states) {
  const int64_t first = 3 * (image * job.pixels + begin), view = 3 * job.pixels * job.batch;
  const uint8_t* rgb = job.images + first;
  const Bits* colours = static_cast<const Bits*>(job.colours);
  Bits* out = static_cast<Bits*>(job.triplet) + first;
  for (int i = 0; i < count; ++i, rgb += 3, out += 3) {
    const Bits visible = states[i] == kVisible ? ~Bits{0} : Bits{0}, hidden = states[i] == kHidden ? ~Bits{0} : Bits{0};
    const Bits colour[3] = {colours[rgb[0]], colours[256 + rgb[1]], colours[512 + rgb[2]]};
    const Bits masks[3] = {static_cast<Bits>(visible | hidden), visible, hidden};
    for (int shown = 0; shown < 3; ++shown) {
      for (int channel = 0; channel < 3; ++channel) out[shown * view + channel] = colour[channel] & masks[shown];
    }
  }
}

template <class Bits>
void write_planes(const TripletJob& job, int image, int64_t begin, int count, const uint8_t* states) {
  const int64_t first = 3 * image * job.pixels, view = 3 * job.pixels * job.batch;
  const uint8_t* rgb = job.images + first + 3 * begin;
  const Bits* colours = static_cast<const Bits*>(job.colours);
  Bits visible[kChunk], hidden[kChunk], values[kChunk];
  for (int i = 0; i < count; ++i) {
    visible[i] = states[i] == kVisible ? ~Bits{0} : Bits{0}, hidden[i] = states[i] == kHidden ? ~Bits{0} : Bits{0};
  }
  for (int channel = 0; channel < 3; ++channel) {
    for (int i = 0; i < count; ++i) values[i] = colours[256 * channel + rgb[3 * i + channel]];
    Bits* out = static_cast<Bits*>(job.triplet) + first + channel * job.pixels + begin;
    for (int i = 0; i < count; ++i) out[i] = values[i] & (visible[i] | hidden[i]);
    for (int i = 0; i < count; ++i) out[view + i] = values[i] & visible[i];
    for (int i = 0; i < count; ++i) out[2 * view + i] = values[i] & hidden[i];
  }
}

using WritePixels = void (*)(const TripletJob&, int, int64_t, int, const uint8_t*);

// Pixels begin .. end of one image; adds to the counts of its own and its visible pixels.
template <class Patches>
void fill_pixels(const TripletJob& job, WritePixels write, int image, int64_t begin, int64_t end, int64_t* counts) {
  uint8_t states[kChunk];
  for (int64_t at = begin; at < end; at += kChunk) {
    const int count = static_cast<int>(std::min<int64_t>(kChunk, end - at));
    Patches::states(job, image, at, count, states);
    write(job, image, at, count, states);
    counts[0] += count - std::count(states, states + count, kPadding);
    counts[1] += std::count(states, states + count, kVisible);
  }
}

template <class Patches>
void run(const TripletJob& job, WritePixels write, int threads, int64_t* thread_counts) {
  const int64_t total = job.pixels * job.batch;
  const auto work = [&](int member, int members, Barrier& meet) {
    for (int image = member; image < job.batch; image += members) fill_table<Patches>(job, image);
    meet.wait();
    int64_t* counts = thread_counts + 2 * static_cast<int64_t>(member) * job.batch;
    std::fill(counts, counts + 2 * job.batch, 0);
    const int64_t begin = total * member / members, end = total * (member + 1) / members;
    for (int64_t at = begin; at < end;) {
      const int image = static_cast<int>(at / job.pixels);
      const int64_t base = image * job.pixels, until = std::min(end, base + job.pixels);
      fill_pixels<Patches>(job, write, image, at - base, until - base, counts + 2 * image);
      at = until;
    }
  };
  Barrier barrier(threads);
  int members = threads;
  if (!run_team(threads, [&](int member) { work(member, threads, barrier); })) {
    Barrier alone(1);
    work(0, members = 1, alone);
  }
  std::fill(job.counts, job.counts + 2 * job.batch, 0);
  for (int64_t i = 0; i < 2 * static_cast<int64_t>(job.batch) * members; ++i) {
    job.counts[i % (2 * job.batch)] += thread_counts[i];
  }
}

template <class Id>
bool run_as(const TripletJob& job, bool grid, WritePixels write, int threads, int64_t* thread_counts) {
  if (!grid) {
    run<Map<Id>>(job, write, threads, thread_counts);
    return true;
  }
  for (int image = 0; image < job.batch; ++image) {
    if (Grid<Id>::side(job, image) < 1) return false;
  }
  run<Grid<Id>>(job, write, threads, thread_counts);
  return true;
}

WritePixels writer(int element_bytes, bool channels_last) {
  if (element_bytes == 4) return channels_last ? write_channels_last<uint32_t> : write_planes<uint32_t>;
  return channels_last ? write_channels_last<uint16_t> : write_planes<uint16_t>;
}

bool is_flag(int value) { return value == 0 || value == 1; }

}  // namespace
}  // namespace cpn

CPN_API int64_t cpn_cp_triplet_cpu_workspace(int batch, int threads) {
  if (batch < 0 || threads < 1) return -1;
  cpn::Arena arena(nullptr, 0);
  arena.take<uint8_t>(batch * cpn::kTableSize);
  arena.take<int32_t>(batch);
  arena.take<int64_t>(2 * static_cast<size_t>(batch) * threads);
  return static_cast<int64_t>(arena.used());
}

// images uint8 [batch, height, width, 3]; patches [batch, height, width], signed integers of patch_bytes (2, 4 or 8),
// negative = padding, or with `grid` [batch], sides from 1 on; keys [batch]; threshold 0 .. 2^32; colours [3, 256],
// values of element_bytes (4 or 2) whose bits are copied -> triplet (I, I_h, I_hbar) of the same values
// [3, batch, height, width, 3], or without `channels_last` [3, batch, 3, height, width]; counts int64 [batch, 2]: pixels
// of the image, and those of them that I_h shows.
CPN_API int cpn_cp_triplet_cpu(const uint8_t* images, const void* patches, int patch_bytes, int grid,
                               const int64_t* keys, uint64_t threshold, const void* colours, int element_bytes,
                               int channels_last, int batch, int height, int width, void* triplet, int64_t* counts,
                               int threads, void* workspace, int64_t workspace_bytes) {
  using namespace cpn;
  if (batch < 0 || height < 0 || width < 0 || threads < 1 || threshold > uint64_t{1} << 32) return kBadArgument;
  const int64_t pixels = static_cast<int64_t>(height) * width;
  if (pixels > INT32_MAX || !is_flag(grid) || !is_flag(channels_last)) return kBadArgument;
  if (element_bytes != 4 && element_bytes != 2) return kBadArgument;
  if (patch_bytes != 2 && patch_bytes != 4 && patch_bytes != 8) return kBadArgument;
  Arena arena(workspace, static_cast<size_t>(std::max<int64_t>(workspace_bytes, 0)));
  TripletJob job{images, patches, keys, threshold, colours, batch, width, pixels, triplet, counts, nullptr, nullptr};
  job.states = arena.take<uint8_t>(batch * kTableSize);
  job.table_sizes = arena.take<int32_t>(batch);
  int64_t* thread_counts = arena.take<int64_t>(2 * static_cast<size_t>(batch) * threads);
  if (workspace == nullptr || !arena.fits()) return kSmallWorkspace;
  if (batch == 0) return kOk;
  if (pixels == 0) {
    std::fill(counts, counts + 2 * batch, 0);
    return kOk;
  }
  const WritePixels write = writer(element_bytes, channels_last == 1);
  const bool done = patch_bytes == 2   ? run_as<int16_t>(job, grid == 1, write, threads, thread_counts)
                    : patch_bytes == 4 ? run_as<int32_t>(job, grid == 1, write, threads, thread_counts)
                                       : run_as<int64_t>(job, grid == 1, write, threads, thread_counts);
  return done ? kOk : kBadArgument;
}
