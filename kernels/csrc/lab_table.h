// CIELAB of 8-bit sRGB in integers, from tables that the compiler computes: IEEE arithmetic in constant expressions, so
// every machine, compiler and device holds the same bits.
#pragma once

#include "portable.h"

namespace cpn {

// Lab in eighths of a unit; a and b are shifted so that all three are >= 0.
constexpr int kLabUnit = 8;
constexpr int kLabShift = 128 * kLabUnit;

struct Lab {
  int l, a, b;
};

namespace lab_detail {

constexpr int kSteps = 8192;     // of a linear tristimulus value in [0, 1]
constexpr int kRootBits = 14;    // fractional bits of f
constexpr int kMatrixBits = 15;  // fractional bits of the RGB -> XYZ matrix

// x^(1/n) for x in (0, 1] by Newton's method from `y`, which is near it or 1.
constexpr double root(double x, int n, double y) {
  for (int step = 0; step < 60; ++step) {
    double power = 1.0;
    for (int i = 1; i < n; ++i) power *= y;
    const double change = (power * y - x) / (n * power);
    y -= change;
    if (change < 1e-13 && change > -1e-13) break;
  }
  return y;
}

constexpr double linear(double encoded) {  // IEC 61966-2-1
  if (encoded <= 0.04045) return encoded / 12.92;
  const double fifth = root((encoded + 0.055) / 1.055, 5, 1.0);
  double power = 1.0;
  for (int i = 0; i < 12; ++i) power *= fifth;
  return power;
}

struct Tables {
  uint16_t linear[256];
  uint16_t f[kSteps + 1];
};

constexpr Tables make_tables() {
  Tables tables{};
  for (int i = 0; i < 256; ++i) tables.linear[i] = static_cast<uint16_t>(linear(i / 255.0) * kSteps * 4 + 0.5);
  double cube_root = 1.0;
  for (int i = kSteps; i >= 0; --i) {  // CIE 15: a cube root with a straight foot
    const double t = static_cast<double>(i) / kSteps;
    const bool foot = t <= 216.0 / 24389.0;
    if (!foot) cube_root = root(t, 3, cube_root);
    const double f = foot ? (24389.0 / 27.0 * t + 16.0) / 116.0 : cube_root;
    tables.f[i] = static_cast<uint16_t>(f * (1 << kRootBits) + 0.5);
  }
  return tables;
}

// Rows of the sRGB matrix (D65), each divided by the white point, in 2^-kMatrixBits; every row sums to 2^kMatrixBits.
constexpr int kMatrix[3][3] = {{14220, 12328, 6220}, {6969, 23434, 2365}, {582, 3587, 28599}};

#if defined(__CUDACC__)
__device__ constexpr Tables kDeviceTables = make_tables();
#endif
constexpr Tables kHostTables = make_tables();

CPN_HD const Tables& tables() {
#if defined(__CUDA_ARCH__)
  return kDeviceTables;
#else
  return kHostTables;
#endif
}

// f of one tristimulus value of linear RGB (each in [0, 4 kSteps]).
CPN_HD int tristimulus_f(const int (&row)[3], int r, int g, int b) {
  constexpr int kDown = kMatrixBits + 2;
  return tables().f[(row[0] * r + row[1] * g + row[2] * b + (1 << (kDown - 1))) >> kDown];
}

}  // namespace lab_detail

CPN_HD Lab lab_of_rgb(uint8_t red, uint8_t green, uint8_t blue) {
  using namespace lab_detail;
  constexpr int kRow0[3] = {kMatrix[0][0], kMatrix[0][1], kMatrix[0][2]};
  constexpr int kRow1[3] = {kMatrix[1][0], kMatrix[1][1], kMatrix[1][2]};
  constexpr int kRow2[3] = {kMatrix[2][0], kMatrix[2][1], kMatrix[2][2]};
  const int r = tables().linear[red], g = tables().linear[green], b = tables().linear[blue];
  const int fx = tristimulus_f(kRow0, r, g, b), fy = tristimulus_f(kRow1, r, g, b), fz = tristimulus_f(kRow2, r, g, b);
  constexpr int kHalf = 1 << (kRootBits - 1);
  Lab lab;
  lab.l = (116 * kLabUnit * fy - 16 * kLabUnit * (1 << kRootBits) + kHalf) >> kRootBits;
  lab.a = (500 * kLabUnit * (fx - fy) + kLabShift * (1 << kRootBits) + kHalf) >> kRootBits;
  lab.b = (200 * kLabUnit * (fy - fz) + kLabShift * (1 << kRootBits) + kHalf) >> kRootBits;
  return lab;
}

}  // namespace cpn
