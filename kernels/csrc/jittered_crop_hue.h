// The hue of a row of pixels turned, with the bits of OpenCV's full conversion (256 hues) to HSV and back.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

namespace cpn {

// OpenCV's rounded quotients in 4096ths, by value and by spread; none of them lies half-way.
struct HueTables {
  std::array<int32_t, 256> by_value{}, by_spread{};
  constexpr HueTables() {
    for (int i = 1; i < 256; ++i) {
      by_value[i] = (2 * (255 << 12) + i) / (2 * i);
      by_spread[i] = (2 * (256 << 12) + 6 * i) / (12 * i);
    }
  }
};
inline constexpr HueTables kHueTables;

// Without a branch, so that the loop is done in vectors.
inline __attribute__((always_inline)) int32_t either(bool first, int32_t a, int32_t b) {
  const int32_t mask = -static_cast<int32_t>(first);
  return (a & mask) | (b & ~mask);
}

// red, green, blue: levels 0 to 255 [n], in place; shift in 256ths of the colour circle, 0 to 255.
inline __attribute__((always_inline)) void turn_hue(int32_t* __restrict red, int32_t* __restrict green,
                                                    int32_t* __restrict blue, int n, int32_t shift) {
  // OpenCV's scales of a saturation and of a hue, each rounded to float.
  constexpr float by_level = 1.0f / 255.0f, by_hue = 6.0f * by_level;
  const int32_t *by_value = kHueTables.by_value.data(), *by_spread = kHueTables.by_spread.data();
  for (int x = 0; x < n; ++x) {
    const int32_t r = red[x], g = green[x], b = blue[x];
    const int32_t most = std::max(r, std::max(g, b)), spread = most - std::min(r, std::min(g, b));
    const int32_t other = either(most == g, b - r + 2 * spread, r - g + 4 * spread);
    const int32_t hue = (either(most == r, g - b, other) * by_spread[spread] + 2048) >> 12;
    const int32_t turned = (std::min(hue + either(hue < 0, 256, 0), 255) + shift) & 255;

    const float saturation = static_cast<float>((spread * by_value[most] + 2048) >> 12) * by_level;
    const float value = static_cast<float>(most), place = static_cast<float>(turned) * by_hue;
    // The last hue is rounded up to 6: the first one again.
    const int32_t whole = static_cast<int32_t>(place), sector = either(whole < 6, whole, 0);
    const float rest = std::min(place, 6.0f) - static_cast<float>(whole);
    // Colours fall in odd sectors and rise in even ones. OpenCV's multiply-add rounds once: the product of two floats
    // fits into a double.
    const float falls = static_cast<float>(sector & 1), part = falls * rest + (1.0f - falls) * (1.0f - rest);
    const double left = 1.0 - static_cast<double>(saturation) * static_cast<double>(part);
    const int32_t moving = static_cast<int32_t>(value * static_cast<float>(left) + 0.5f);
    const int32_t low = static_cast<int32_t>(value * (1.0f - saturation) + 0.5f);
    red[x] = either((sector == 0) | (sector == 5), most, either((sector == 1) | (sector == 4), moving, low));
    green[x] = either((sector == 1) | (sector == 2), most, either((sector == 0) | (sector == 3), moving, low));
    blue[x] = either((sector == 3) | (sector == 4), most, either((sector == 2) | (sector == 5), moving, low));
  }
}

}  // namespace cpn
