// The CP triplet on the CPU in one pass over the pixels: three views and the count of visible pixels.
#include <algorithm>
#include <cstring>

#include "philox.h"
#include "thread_team.h"

namespace cpn {
namespace {

constexpr int64_t kTableSize = 65536;  // patches whose draw is looked up; of others it is made at every pixel

struct TripletJob {
  const uint8_t* images;  // [batch][pixels][3]
  const int64_t* keys;    // [batch]
  uint64_t threshold;     // a patch is hidden where its word is below
  const float* colours;   // [3][256] normalised value of every 8-bit value
  int batch, pixels;
  float* triplet;         // [3][batch][pixels][3]
  int64_t* counts;        // [batch][2] pixels of the image, and visible ones; added to
  uint8_t* hidden;        // [batch][kTableSize]
  int32_t* table_sizes;   // [batch]
};

bool draw(const TripletJob& job, int image, uint32_t patch) {
  return philox_first_word(static_cast<uint64_t>(job.keys[image]), patch) < job.threshold;
}

template <class Id>
void fill_table(const TripletJob& job, const Id* patches, int image) {
  int64_t largest = -1;
  for (int64_t at = 0; at < job.pixels; ++at) largest = std::max(largest, static_cast<int64_t>(patches[at]));
  const int64_t size = std::min(largest + 1, kTableSize);
  uint8_t* hidden = job.hidden + image * kTableSize;
  for (int64_t patch = 0; patch < size; ++patch) hidden[patch] = draw(job, image, static_cast<uint32_t>(patch));
  job.table_sizes[image] = static_cast<int32_t>(size);
}

// Rows of floats are written with the bits of the normalised colour under an all-or-nothing mask.
inline void write_pixel(float* out, const float (&colour)[3], uint32_t mask) {
  for (int channel = 0; channel < 3; ++channel) {
    uint32_t bits;
    std::memcpy(&bits, &colour[channel], sizeof bits);
    bits &= mask;
    std::memcpy(out + channel, &bits, sizeof bits);
  }
}

template <class Id>
void fill_pixels(const TripletJob& job, const Id* patches, int image, int64_t begin, int64_t end, int64_t (&counts)[2]) {
  const uint8_t* hidden = job.hidden + image * kTableSize;
  const int64_t table_size = job.table_sizes[image], stack = static_cast<int64_t>(job.batch) * job.pixels;
  const uint8_t* rgb = job.images + 3 * (image * static_cast<int64_t>(job.pixels) + begin);
  float* out = job.triplet + 3 * (image * static_cast<int64_t>(job.pixels) + begin);
  int64_t inside_count = 0, hidden_count = 0;
  for (int64_t at = begin; at < end; ++at, rgb += 3, out += 3) {
    const int64_t patch = patches[at];
    const bool inside = patch >= 0;
    const bool hides = inside && (patch < table_size ? hidden[patch] != 0 : draw(job, image, static_cast<uint32_t>(patch)));
    const uint32_t inside_mask = inside ? ~0u : 0u, hidden_mask = hides ? ~0u : 0u;
    const float colour[3] = {job.colours[rgb[0]], job.colours[256 + rgb[1]], job.colours[512 + rgb[2]]};
    write_pixel(out, colour, inside_mask);
    write_pixel(out + 3 * stack, colour, inside_mask & ~hidden_mask);
    write_pixel(out + 6 * stack, colour, hidden_mask);
    inside_count += inside, hidden_count += hides;
  }
  counts[0] += inside_count, counts[1] += inside_count - hidden_count;
}

template <class Id>
void run(TripletJob job, const Id* patches, int threads, int64_t* thread_counts) {
  const int64_t total = static_cast<int64_t>(job.batch) * job.pixels;
  Barrier barrier(threads);
  const auto work = [&](int member, int members, Barrier& meet) {
    for (int image = member; image < job.batch; image += members) {
      fill_table(job, patches + image * static_cast<int64_t>(job.pixels), image);
    }
    meet.wait();
    int64_t* counts = thread_counts + 2 * static_cast<int64_t>(member) * job.batch;
    std::fill(counts, counts + 2 * job.batch, 0);
    const int64_t begin = total * member / members, end = total * (member + 1) / members;
    for (int64_t at = begin; at < end;) {
      const int image = static_cast<int>(at / job.pixels);
      const int64_t base = image * static_cast<int64_t>(job.pixels), until = std::min(end, base + job.pixels);
      int64_t found[2] = {0, 0};
      fill_pixels(job, patches + base, image, at - base, until - base, found);
      counts[2 * image] += found[0], counts[2 * image + 1] += found[1];
      at = until;
    }
  };
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

}  // namespace
}  // namespace cpn

CPN_API int64_t cpn_cp_triplet_cpu_workspace(int batch, int threads) {
  cpn::Arena arena(nullptr, 0);
  arena.take<uint8_t>(batch * cpn::kTableSize);
  arena.take<int32_t>(batch);
  arena.take<int64_t>(2 * static_cast<size_t>(batch) * threads);
  return static_cast<int64_t>(arena.used());
}

// images uint8 [batch, pixels, 3]; patches [batch, pixels], signed integers of patch_bytes (2, 4 or 8), negative =
// padding; keys [batch]; colours float [3, 256] -> triplet float [3, batch, pixels, 3] (I, I_h, I_hbar), counts
// int64 [batch, 2]: pixels of the image, and those of them that I_h shows.
CPN_API int cpn_cp_triplet_cpu(const uint8_t* images, const void* patches, int patch_bytes, const int64_t* keys,
                               uint64_t threshold, const float* colours, int batch, int pixels, float* triplet,
                               int64_t* counts, int threads, void* workspace, int64_t workspace_bytes) {
  using namespace cpn;
  if (batch < 0 || pixels < 0 || threads < 1) return kBadArgument;
  Arena arena(workspace, static_cast<size_t>(workspace_bytes));
  TripletJob job{images, keys, threshold, colours, batch, pixels, triplet, counts, nullptr, nullptr};
  job.hidden = arena.take<uint8_t>(batch * kTableSize);
  job.table_sizes = arena.take<int32_t>(batch);
  int64_t* thread_counts = arena.take<int64_t>(2 * static_cast<size_t>(batch) * threads);
  if (workspace == nullptr || !arena.fits()) return kSmallWorkspace;
  if (batch == 0) return kOk;
  if (patch_bytes == 2) run(job, static_cast<const int16_t*>(patches), threads, thread_counts);
  else if (patch_bytes == 4) run(job, static_cast<const int32_t*>(patches), threads, thread_counts);
  else if (patch_bytes == 8) run(job, static_cast<const int64_t*>(patches), threads, thread_counts);
  else return kBadArgument;
  return kOk;
}
