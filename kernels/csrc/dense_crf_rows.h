// Mean field over rows of vector lanes. Included once for each instruction set, in a namespace of its own, with
// CPN_ROWS_TARGET as the attribute that names the set: vector types are lowered to the set of the function that they
// are written in, so that clones of a caller would come too late.

#define CPN_ROWS_INLINE inline __attribute__((always_inline)) CPN_ROWS_TARGET

// Groups known to the compiler keep a row in registers; G = 0 is for many classes.
template <int G>
struct Row {
  Lanes lanes[G == 0 ? kMaxGroups : G];
};

template <int G>
CPN_ROWS_INLINE int groups_of(const MeanFieldJob& job) {
  if (job.groups < 1) __builtin_unreachable();
  return G == 0 ? job.groups : G;
}

template <int G>
CPN_ROWS_INLINE void clear(const MeanFieldJob& job, Row<G>& row) {
  for (int g = 0; g < groups_of<G>(job); ++g) row.lanes[g] = Lanes{};
}

// e^x for x <= 0, to 2 units in the last place; 0 below -87; not a number stays so.
CPN_ROWS_INLINE void exponentiate(Lanes& x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: added and taken away, it rounds to the nearest
  const Ints tiny = x < -87.0f;
  const Lanes bounded = tiny ? Lanes{} - 87.0f : x;
  const Lanes shifted = bounded * 1.44269504f + kRound;
  const Lanes power = shifted - kRound;
  const Lanes rest = (bounded - power * 0.693359375f) + power * 2.12194440e-4f;
  Lanes value = rest * 1.9875691500e-4f + 1.3981999507e-3f;
  value = value * rest + 8.3334519073e-3f;
  value = value * rest + 4.1665795894e-2f;
  value = value * rest + 1.6666665459e-1f;
  value = value * rest + 5.0000001201e-1f;
  value = value * rest * rest + rest + 1.0f;
  const Ints bits = (reinterpret_cast<Ints>(shifted) + 127) << 23;  // the low bits of `shifted` are the power
  value *= reinterpret_cast<Lanes>(bits);
  x = tiny ? Lanes{} : value;
}

template <int G>
CPN_ROWS_INLINE void softmax(const MeanFieldJob& job, Row<G>& row) {
  const int groups = groups_of<G>(job);
  Lanes most = row.lanes[0];
  for (int g = 1; g < groups; ++g) most = row.lanes[g] > most ? row.lanes[g] : most;
  float largest = most[0];
  for (int i = 1; i < kLanes; ++i) largest = most[i] > largest ? most[i] : largest;
  Lanes sums = {};
  for (int g = 0; g < groups; ++g) {
    row.lanes[g] -= largest;
    exponentiate(row.lanes[g]);
    sums += row.lanes[g];
  }
  const float sum = ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
  const float factor = 1 / sum;
  for (int g = 0; g < groups; ++g) row.lanes[g] *= factor;
}

// Adds what a filter gathers at a pixel.
template <int G>
CPN_ROWS_INLINE void slice(const MeanFieldJob& job, int kernel, int64_t pixel, Row<G>& row) {
  const int groups = groups_of<G>(job);
  const Lattice& lattice = job.lattice[kernel];
  const int32_t* points = lattice.corner_points + pixel * lattice.corners;
  const float* weights = lattice.corner_weights + pixel * lattice.corners;
  Row<G> sum;
  clear<G>(job, sum);
  for (int k = 0; k < lattice.corners; ++k) {
    const Lanes* values = job.values[kernel] + static_cast<int64_t>(points[k]) * groups;
    for (int g = 0; g < groups; ++g) sum.lanes[g] += values[g] * weights[k];
  }
  for (int g = 0; g < groups; ++g) row.lanes[g] += sum.lanes[g] * lattice.compat;
}

// Adds a pixel's row to the lattice points of the next round.
template <int G>
CPN_ROWS_INLINE void scatter(const MeanFieldJob& job, int kernel, int64_t pixel, const Row<G>& row) {
  const int groups = groups_of<G>(job);
  const Lattice& lattice = job.lattice[kernel];
  const int32_t* points = lattice.corner_points + pixel * lattice.corners;
  const float* weights = lattice.corner_weights + pixel * lattice.corners;
  for (int k = 0; k < lattice.corners; ++k) {
    Lanes* values = job.other[kernel] + static_cast<int64_t>(points[k]) * groups;
    for (int g = 0; g < groups; ++g) values[g] += row.lanes[g] * weights[k];
  }
}

// Softmax of the unary term and, with `sliced`, of what the filters gather at each pixel; to q or, `onward`, straight
// to the lattice points of the next round.
template <int G>
CPN_ROWS_INLINE void update(const MeanFieldJob& job, int64_t begin, int64_t end, bool sliced, bool onward) {
  const int groups = groups_of<G>(job);
  for (int64_t pixel = begin; pixel < end; ++pixel) {
    Row<G> row;
    for (int g = 0; g < groups; ++g) row.lanes[g] = job.unary[pixel * groups + g];
    for (int kernel = 0; sliced && kernel < job.kernels; ++kernel) slice<G>(job, kernel, pixel, row);
    softmax<G>(job, row);
    if (onward) {
      for (int kernel = 0; kernel < job.kernels; ++kernel) scatter<G>(job, kernel, pixel, row);
    } else {
      for (int g = 0; g < groups; ++g) job.q[pixel * groups + g] = row.lanes[g];
    }
  }
}

// What `scatter` does, for a range of lattice points: each gathers its pixels from q, in the same order.
template <int G>
CPN_ROWS_INLINE void splat(const MeanFieldJob& job, int kernel, int64_t begin, int64_t end) {
  const int groups = groups_of<G>(job);
  const Lattice& lattice = job.lattice[kernel];
  for (int64_t point = begin; point < end; ++point) {
    Row<G> sum;
    clear<G>(job, sum);
    for (int32_t at = lattice.point_begin[point]; at < lattice.point_begin[point + 1]; ++at) {
      const Lanes* q = job.q + static_cast<int64_t>(lattice.point_pixels[at]) * groups;
      for (int g = 0; g < groups; ++g) sum.lanes[g] += q[g] * lattice.point_weights[at];
    }
    for (int g = 0; g < groups; ++g) job.other[kernel][point * groups + g] = sum.lanes[g];
  }
}

template <int G>
CPN_ROWS_INLINE void blur(const MeanFieldJob& job, int kernel, int axis, int64_t begin, int64_t end) {
  const int groups = groups_of<G>(job);
  const Lattice& lattice = job.lattice[kernel];
  const int32_t* pair = lattice.neighbours + 2 * (static_cast<int64_t>(axis) * lattice.points + begin);
  const Lanes* from = job.values[kernel];
  Lanes* to = job.other[kernel];
  for (int64_t point = begin; point < end; ++point, pair += 2) {
    const Lanes* back = from + static_cast<int64_t>(pair[0]) * groups;
    const Lanes* forth = from + static_cast<int64_t>(pair[1]) * groups;
    for (int g = 0; g < groups; ++g) {
      to[point * groups + g] = from[point * groups + g] + 0.5f * (back[g] + forth[g]);
    }
  }
}

CPN_ROWS_TARGET void update_pixels(const MeanFieldJob& job, int64_t begin, int64_t end, bool sliced, bool onward) {
  CPN_BY_GROUPS(update, job, begin, end, sliced, onward)
}

CPN_ROWS_TARGET void splat_points(const MeanFieldJob& job, int kernel, int64_t begin, int64_t end) {
  CPN_BY_GROUPS(splat, job, kernel, begin, end)
}

CPN_ROWS_TARGET void blur_points(const MeanFieldJob& job, int kernel, int axis, int64_t begin, int64_t end) {
  CPN_BY_GROUPS(blur, job, kernel, axis, begin, end)
}

#undef CPN_ROWS_INLINE
