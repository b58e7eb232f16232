// A training crop of an image: resize (cubic), flip, colour jitter and cut, row by row, with the bits of Pillow.
// What the crop does not show is resized only where the contrast asks for the mean grey of the whole image, and is kept
// nowhere.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "jittered_crop_hue.h"
#include "portable.h"

namespace cpn {
namespace {

constexpr int kPrecision = 22;  // bits of a weight behind the point: Pillow's
constexpr int kTogether = 4;    // source rows that are resized across at once
constexpr int kLanes = 4 * kTogether;
constexpr int kMost = 4;        // steps of a jitter

enum Kind : int32_t { kBrightness = 0, kContrast = 1, kSaturation = 2, kHue = 3 };

typedef int32_t Lanes __attribute__((vector_size(4 * kLanes)));

// Weights of one direction: output i is the sum of `count[i]` inputs from `first[i]` on.
struct Weights {
  int32_t* first;   // [out]
  int32_t* count;   // [out]
  int32_t* values;  // [out][most]; 0 behind the count
  int most;
  int taps;         // the largest count
};

struct Job {
  const uint8_t* image;  // [height][width][3]
  int height, width;
  int scaled_height, scaled_width;
  bool flip;
  int tall, broad;       // of the crop
  int top, left;         // of the cut in the resized, flipped image
  int row, column;       // of the cut in the crop
  int rows, columns;     // of the cut
  int steps;
  const int32_t* kinds;    // [steps]
  const float* amounts;    // [steps]: a factor, or a shift in 256ths of the colour circle
  uint8_t* output;         // [tall][broad][3]
  Weights across, down;
  int32_t* wide;           // [width + taps][kTogether][4]: source rows
  int32_t* sums;           // [kTogether][4 * pitch]
  uint8_t* narrow;         // [height][4 * pitch]: source rows, resized across
  uint8_t* resized_row;    // [4 * pitch]
  int32_t* planes;         // [3][pitch]
  int pitch;
};

double cubic(double x) {
  constexpr double a = -0.5;
  x = std::fabs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  return x < 2.0 ? (((x - 5) * x + 8) * x - 4) * a : 0.0;
}

int most_weights(int size, int scaled) {
  return static_cast<int>(std::ceil(2.0 * std::max(1.0, static_cast<double>(size) / scaled))) * 2 + 1;
}

void fill_weights(Weights& weights, int size, int scaled) {
  const double scale = static_cast<double>(size) / scaled, wide = std::max(1.0, scale), support = 2.0 * wide;
  double raw[512];
  for (int i = 0; i < scaled; ++i) {
    const double centre = (i + 0.5) * scale, inverse = 1.0 / wide;
    const int first = std::max(0, static_cast<int>(centre - support + 0.5));
    const int count = std::min(size, static_cast<int>(centre + support + 0.5)) - first;
    double total = 0.0;
    for (int k = 0; k < count; ++k) total += raw[k] = cubic((k + first - centre + 0.5) * inverse);
    int32_t* values = weights.values + static_cast<int64_t>(i) * weights.most;
    for (int k = 0; k < count; ++k) {
      const double value = total != 0.0 ? raw[k] / total : raw[k];
      values[k] = static_cast<int32_t>((value < 0 ? -0.5 : 0.5) + value * (1 << kPrecision));
    }
    std::fill(values + count, values + weights.most, 0);
    weights.first[i] = first, weights.count[i] = count, weights.taps = std::max(weights.taps, count);
  }
}

inline __attribute__((always_inline)) int32_t to_level(int32_t sum) {
  return std::min(255, std::max(0, sum >> kPrecision));
}

// Source rows y .. y + kTogether - 1 (the last one again where there are fewer), columns begin .. end - 1.
template <int kTaps>
inline __attribute__((always_inline)) void resize_across(const Job& job, int y, int begin, int end) {
  const int rows = std::min(kTogether, job.height - y);
  for (int row = 0; row < kTogether; ++row) {
    const uint8_t* from = job.image + static_cast<int64_t>(y + std::min(row, rows - 1)) * job.width * 3;
    int32_t* to = job.wide + 4 * row;
    for (int x = 0; x < job.width; ++x, from += 3, to += kLanes) {
      to[0] = from[0], to[1] = from[1], to[2] = from[2], to[3] = 0;
    }
  }
  const int64_t pitch = 4 * static_cast<int64_t>(job.pitch);
  for (int x = begin; x < end; ++x) {
    const int32_t* values = job.across.values + static_cast<int64_t>(x) * job.across.most;
    const Lanes* from = reinterpret_cast<const Lanes*>(job.wide) + job.across.first[x];
    Lanes sums = Lanes{} + (1 << (kPrecision - 1));
    const int taps = kTaps > 0 ? kTaps : job.across.count[x];
    for (int k = 0; k < taps; ++k) sums += from[k] * values[k];
    for (int row = 0; row < kTogether; ++row) {
      std::memcpy(job.sums + row * pitch + 4 * x, reinterpret_cast<const int32_t*>(&sums) + 4 * row, 16);
    }
  }
  for (int row = 0; row < rows; ++row) {
    const int32_t* __restrict from = job.sums + row * pitch;
    uint8_t* __restrict to = job.narrow + (y + row) * pitch;
    for (int at = 4 * begin; at < 4 * end; ++at) to[at] = static_cast<uint8_t>(to_level(from[at]));
  }
}

// One row of the resized image, columns begin .. end - 1.
inline __attribute__((always_inline)) void resize_down(const Job& job, int y, int begin, int end) {
  const int32_t* values = job.down.values + static_cast<int64_t>(y) * job.down.most;
  const int count = job.down.count[y];
  const int64_t pitch = 4 * static_cast<int64_t>(job.pitch);
  const uint8_t* __restrict from = job.narrow + job.down.first[y] * pitch;
  int32_t* __restrict sums = job.sums;
  uint8_t* __restrict to = job.resized_row;
  for (int at = 4 * begin; at < 4 * end; ++at) sums[at] = 1 << (kPrecision - 1);
  int k = 0;
  for (; k + 4 <= count; k += 4, from += 4 * pitch) {
    const int32_t a = values[k], b = values[k + 1], c = values[k + 2], d = values[k + 3];
    for (int at = 4 * begin; at < 4 * end; ++at) {
      sums[at] += from[at] * a + from[at + pitch] * b + from[at + 2 * pitch] * c + from[at + 3 * pitch] * d;
    }
  }
  for (; k < count; ++k, from += pitch) {
    for (int at = 4 * begin; at < 4 * end; ++at) sums[at] += from[at] * values[k];
  }
  for (int at = 4 * begin; at < 4 * end; ++at) to[at] = static_cast<uint8_t>(to_level(sums[at]));
}

// Pillow's blend: from `base` at 0 to the level at 1 and beyond, cut off behind the point.
inline __attribute__((always_inline)) int32_t blend(int32_t base, int32_t level, float amount) {
  const float value = static_cast<float>(base) + amount * static_cast<float>(level - base);
  return static_cast<int32_t>(std::min(255.0f, std::max(0.0f, value)));
}

inline __attribute__((always_inline)) int32_t grey_of(int32_t red, int32_t green, int32_t blue) {
  return (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
}

// Steps begin .. end - 1 on n pixels; `mean` is the grey that a contrast moves away from.
inline __attribute__((always_inline)) void jitter(const Job& job, int begin, int end, int32_t mean, int32_t* red,
                                                  int32_t* green, int32_t* blue, int n) {
  for (int step = begin; step < end; ++step) {
    const float amount = job.amounts[step];
    if (job.kinds[step] == kHue) {
      turn_hue(red, green, blue, n, static_cast<int32_t>(amount));
    } else if (job.kinds[step] == kSaturation) {
      for (int x = 0; x < n; ++x) {
        const int32_t grey = grey_of(red[x], green[x], blue[x]);
        red[x] = blend(grey, red[x], amount);
        green[x] = blend(grey, green[x], amount);
        blue[x] = blend(grey, blue[x], amount);
      }
    } else {
      const int32_t base = job.kinds[step] == kContrast ? mean : 0;
      for (int32_t* plane : {red, green, blue}) {
        for (int x = 0; x < n; ++x) plane[x] = blend(base, plane[x], amount);
      }
    }
  }
}

CPN_VECTOR_CLONES void augment(const Job& job) {
  const int contrast = static_cast<int>(std::find(job.kinds, job.kinds + job.steps, kContrast) - job.kinds);
  const bool whole = contrast < job.steps;
  const bool same = job.scaled_height == job.height && job.scaled_width == job.width;
  const int seen_left = job.flip ? job.scaled_width - job.left - job.columns : job.left;
  const int left = whole ? 0 : seen_left, right = whole ? job.scaled_width : seen_left + job.columns;
  const int top = whole ? 0 : job.top, bottom = whole ? job.scaled_height : job.top + job.rows;
  int32_t *__restrict red = job.planes, *__restrict green = red + job.pitch, *__restrict blue = green + job.pitch;
  const int columns = job.columns;
  int64_t total = 0;
  int ready = bottom > top ? job.down.first[top] : 0;
  for (int y = top; y < bottom; ++y) {
    for (; !same && ready < job.down.first[y] + job.down.count[y]; ready += kTogether) {
      if (job.across.taps <= 4) {
        resize_across<4>(job, ready, left, right);
      } else {
        resize_across<0>(job, ready, left, right);
      }
    }
    const int n = right - left;
    if (same) {
      const uint8_t* __restrict from = job.image + (static_cast<int64_t>(y) * job.width + left) * 3;
      for (int x = 0; x < n; ++x) red[x] = from[3 * x], green[x] = from[3 * x + 1], blue[x] = from[3 * x + 2];
    } else {
      resize_down(job, y, left, right);
      const uint8_t* __restrict from = job.resized_row + 4 * left;
      for (int x = 0; x < n; ++x) red[x] = from[4 * x], green[x] = from[4 * x + 1], blue[x] = from[4 * x + 2];
    }
    jitter(job, 0, contrast, 0, red, green, blue, n);
    if (whole) {
      int32_t sum = 0;
      for (int x = 0; x < n; ++x) sum += grey_of(red[x], green[x], blue[x]);
      total += sum;
    }
    if (y < job.top || y >= job.top + job.rows) continue;
    uint8_t* __restrict to = job.output + (static_cast<int64_t>(job.row + y - job.top) * job.broad + job.column) * 3;
    const int from = seen_left - left + (job.flip ? columns - 1 : 0), step = job.flip ? -1 : 1;
    for (int x = 0, at = from; x < columns; ++x, at += step) {
      to[3 * x] = static_cast<uint8_t>(red[at]);
      to[3 * x + 1] = static_cast<uint8_t>(green[at]);
      to[3 * x + 2] = static_cast<uint8_t>(blue[at]);
    }
  }
  if (!whole) return;
  const int32_t mean = static_cast<int32_t>(
      static_cast<double>(total) / (static_cast<double>(job.scaled_height) * job.scaled_width) + 0.5);
  for (int y = 0; y < job.rows; ++y) {
    uint8_t* __restrict at = job.output + (static_cast<int64_t>(job.row + y) * job.broad + job.column) * 3;
    for (int x = 0; x < columns; ++x) red[x] = at[3 * x], green[x] = at[3 * x + 1], blue[x] = at[3 * x + 2];
    jitter(job, contrast, job.steps, mean, red, green, blue, columns);
    for (int x = 0; x < columns; ++x) {
      at[3 * x] = static_cast<uint8_t>(red[x]);
      at[3 * x + 1] = static_cast<uint8_t>(green[x]);
      at[3 * x + 2] = static_cast<uint8_t>(blue[x]);
    }
  }
}

void fill_padding(const Job& job, const uint8_t* fill) {
  const auto paint = [&](int y, int begin, int end) {
    uint8_t* to = job.output + (static_cast<int64_t>(y) * job.broad + begin) * 3;
    for (int x = begin; x < end; ++x, to += 3) std::memcpy(to, fill, 3);
  };
  for (int y = 0; y < job.tall; ++y) {
    const bool seen = y >= job.row && y < job.row + job.rows;
    paint(y, 0, seen ? job.column : job.broad);
    if (seen) paint(y, job.column + job.columns, job.broad);
  }
}

Weights take_weights(Arena& arena, int size, int scaled) {
  Weights weights{};
  weights.most = most_weights(size, scaled);
  weights.first = arena.take<int32_t>(scaled);
  weights.count = arena.take<int32_t>(scaled);
  weights.values = arena.take<int32_t>(static_cast<size_t>(scaled) * weights.most);
  return weights;
}

size_t take_workspace(Job& job, Arena& arena) {
  job.pitch = (job.scaled_width + kLanes - 1) / kLanes * kLanes;
  job.across = take_weights(arena, job.width, job.scaled_width);
  job.down = take_weights(arena, job.height, job.scaled_height);
  job.wide = arena.take<int32_t>((static_cast<size_t>(job.width) + job.across.most) * kLanes);
  job.sums = arena.take<int32_t>(static_cast<size_t>(job.pitch) * kLanes);
  job.narrow = arena.take<uint8_t>(static_cast<size_t>(job.height) * job.pitch * 4);
  job.resized_row = arena.take<uint8_t>(static_cast<size_t>(job.pitch) * 4);
  // A crop is no wider than the resized image where it is cut, so that one row serves both.
  job.planes = arena.take<int32_t>(static_cast<size_t>(job.pitch) * 3);
  return arena.used();
}

bool fits_inside(int begin, int extent, int size) { return begin >= 0 && extent >= 0 && begin <= size - extent; }

constexpr int kMostSide = 32767;
constexpr int kMostShrink = 100;  // of a side: the sums of weights lie on the stack

bool takes(int height, int width, int scaled_height, int scaled_width) {
  const auto side = [](int size, int scaled) {
    return size >= 1 && scaled >= 1 && size <= kMostSide && scaled <= kMostSide && size / kMostShrink < scaled;
  };
  return side(height, scaled_height) && side(width, scaled_width);
}

}  // namespace
}  // namespace cpn

// Bytes; -1 for sizes that cpn_jittered_crop_cpu does not take: sides beyond 32,767, or shrunk to a hundredth and less.
CPN_API int64_t cpn_jittered_crop_cpu_workspace(int height, int width, int scaled_height, int scaled_width) {
  using namespace cpn;
  if (!takes(height, width, scaled_height, scaled_width)) return -1;
  Job job{};
  job.height = height, job.width = width, job.scaled_height = scaled_height, job.scaled_width = scaled_width;
  Arena arena(nullptr, 0);
  return static_cast<int64_t>(take_workspace(job, arena));
}

// image [height, width, 3] -> output [tall, broad, 3]. geometry: scaled height, width, flip, tall, broad, top, left of
// the cut in the resized, flipped image, row, column of the cut in the output, its rows, columns. Each kind of step at
// most once.
CPN_API int cpn_jittered_crop_cpu(const uint8_t* image, int height, int width, const int32_t* geometry, int steps,
                                  const int32_t* kinds, const float* amounts, const uint8_t* fill, uint8_t* output,
                                  void* workspace, int64_t workspace_bytes) {
  using namespace cpn;
  Job job{};
  job.image = image, job.height = height, job.width = width;
  job.scaled_height = geometry[0], job.scaled_width = geometry[1], job.flip = geometry[2] != 0;
  job.tall = geometry[3], job.broad = geometry[4], job.top = geometry[5], job.left = geometry[6];
  job.row = geometry[7], job.column = geometry[8], job.rows = geometry[9], job.columns = geometry[10];
  job.steps = steps, job.kinds = kinds, job.amounts = amounts, job.output = output;
  if (!takes(height, width, job.scaled_height, job.scaled_width) || steps < 0 || steps > kMost) return kBadArgument;
  if (job.tall < 0 || job.broad < 0 || job.tall > kMostSide || job.broad > kMostSide) return kBadArgument;
  if (!fits_inside(job.top, job.rows, job.scaled_height) || !fits_inside(job.left, job.columns, job.scaled_width) ||
      !fits_inside(job.row, job.rows, job.tall) || !fits_inside(job.column, job.columns, job.broad)) {
    return kBadArgument;
  }
  int seen = 0;
  for (int step = 0; step < steps; ++step) {
    if (kinds[step] < kBrightness || kinds[step] > kHue || (seen >> kinds[step] & 1) != 0) return kBadArgument;
    seen |= 1 << kinds[step];
  }
  Arena arena(workspace, static_cast<size_t>(std::max<int64_t>(workspace_bytes, 0)));
  take_workspace(job, arena);
  if (workspace == nullptr || !arena.fits()) return kSmallWorkspace;
  fill_weights(job.across, width, job.scaled_width);
  fill_weights(job.down, height, job.scaled_height);
  std::fill_n(job.wide + static_cast<int64_t>(width) * kLanes, static_cast<int64_t>(job.across.most) * kLanes, 0);
  augment(job);
  fill_padding(job, fill);
  return kOk;
}
