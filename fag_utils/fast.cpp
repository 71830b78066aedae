// Batch norm with its activation in two passes over memory, and the gradient of a depthwise convolution:
// what a training step of a light network spends most of its time on. See fast.py.
//
// Tensors are channels last, seen as (rows, channels), channels a multiple of 8. T is float, or uint16_t that
// holds a bfloat16. Vectors are GCC's, of 8 or 16 channels, so that any processor will do.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#include <omp.h>

template <int L> struct Types;
template <> struct Types<8> {
  typedef float f __attribute__((vector_size(32)));
  typedef uint32_t u __attribute__((vector_size(32)));
  typedef uint16_t h __attribute__((vector_size(16)));
};
template <> struct Types<16> {
  typedef float f __attribute__((vector_size(64)));
  typedef uint32_t u __attribute__((vector_size(64)));
  typedef uint16_t h __attribute__((vector_size(32)));
};

template <int L> struct V : Types<L> {
  using f = typename Types<L>::f;
  using u = typename Types<L>::u;
  using h = typename Types<L>::h;
  static f load(const float *p) { f v; std::memcpy(&v, p, sizeof v); return v; }
  static f load(const uint16_t *p) {
    h raw; std::memcpy(&raw, p, sizeof raw);
    u wide = __builtin_convertvector(raw, u) << 16;
    return (f)wide;
  }
  static void store(float *p, f v) { std::memcpy(p, &v, sizeof v); }
  static void store(uint16_t *p, f v) {  // to the nearest, ties to even
    u bits = (u)v;
    h raw = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, h);
    std::memcpy(p, &raw, sizeof raw);
  }
  static f all(float x) { return f{} + x; }
};

template <int L> static void add(float *sum, typename V<L>::f v) { V<L>::store(sum, V<L>::load(sum) + v); }

enum { LINEAR = 0, PRELU = 1, RELU6 = 2, RELU = 3 };

// Rows are worked on in blocks that stay in the nearest cache while all channels are gone through.
static long block_of(long c) { return std::min(64L, std::max(8L, 4096 / c)); }

template <class T, int L>
static void forward(const T *x, const T *residual, T *y, long rows, long c, const float *gamma, const float *beta,
                    const float *alpha, int kind, float eps, int training, float *mean, float *inverse,
                    float *variance) {
  typedef V<L> v;
  typedef typename v::f f;
  const int threads = omp_get_max_threads();
  const long BLOCK = block_of(c);
  std::vector<float> sums(2 * c * threads, 0.0f);
  // The sums are of x minus the first row: else the difference of two large numbers would lose digits.
  std::vector<float> origin(c);
  for (long k = 0; k < c; k += L) v::store(&origin[k], v::load(x + k));
#pragma omp parallel num_threads(threads) if (training)
  {
    float *mine = &sums[2 * c * omp_get_thread_num()];
#pragma omp for schedule(static)
    for (long start = 0; start < (training ? rows : 0); start += BLOCK) {
      long end = std::min(rows, start + BLOCK);
      for (long k = 0; k < c; k += L) {
        f s = v::all(0), q = v::all(0), o = v::load(&origin[k]);
        for (long r = start; r < end; r++) {
          f a = v::load(x + r * c + k) - o;
          s += a;
          q += a * a;
        }
        add<L>(mine + k, s);
        add<L>(mine + c + k, q);
      }
    }
  }
  std::vector<float> scale(c), shift(c);
  for (long k = 0; k < c; k++) {
    double s = 0, q = 0;
    for (int t = 0; t < threads; t++) s += sums[2 * c * t + k], q += sums[2 * c * t + c + k];
    s /= rows;
    if (training) variance[k] = std::max(0.0, q / rows - s * s), mean[k] = s + origin[k];
    inverse[k] = 1 / std::sqrt(variance[k] + eps);
    scale[k] = gamma[k] * inverse[k];
    shift[k] = beta[k] - mean[k] * scale[k];
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long start = 0; start < rows; start += BLOCK) {
    long end = std::min(rows, start + BLOCK);
    for (long k = 0; k < c; k += L) {
      f m = v::load(&scale[k]), b = v::load(&shift[k]);
      f slope = kind == PRELU ? v::load(alpha + k) : v::all(0);
      for (long r = start; r < end; r++) {
        f z = v::load(x + r * c + k) * m + b;
        if (kind == PRELU) z = z > 0 ? z : z * slope;
        if (kind >= RELU6) z = z > 0 ? z : v::all(0);
        if (kind == RELU6) z = z < 6 ? z : v::all(6);
        if (residual) z += v::load(residual + r * c + k);
        v::store(y + r * c + k, z);
      }
    }
  }
}

template <class T, int L>
static void backward(const T *x, const T *dy, T *dx, long rows, long c, const float *gamma, const float *beta,
                     const float *alpha, int kind, const float *mean, const float *inverse, float *dgamma,
                     float *dbeta, float *dalpha) {
  typedef V<L> v;
  typedef typename v::f f;
  const int threads = omp_get_max_threads();
  std::vector<float> scale(c), shift(c);
  for (long k = 0; k < c; k++) scale[k] = gamma[k] * inverse[k], shift[k] = beta[k] - mean[k] * scale[k];
  const long BLOCK = block_of(c);
  std::vector<float> sums(3 * c * threads, 0.0f);
#pragma omp parallel num_threads(threads)
  {
    float *mine = &sums[3 * c * omp_get_thread_num()];
#pragma omp for schedule(static)
    for (long start = 0; start < rows; start += BLOCK) {
      long end = std::min(rows, start + BLOCK);
      for (long k = 0; k < c; k += L) {
        f sb = v::all(0), sg = sb, sa = sb, zero = sb;
        f m = v::load(&scale[k]), b = v::load(&shift[k]), mu = v::load(mean + k);
        f slope = kind == PRELU ? v::load(alpha + k) : zero;
        for (long r = start; r < end; r++) {
          f a = v::load(x + r * c + k), g = v::load(dy + r * c + k);
          if (kind != LINEAR) {
            f z = a * m + b;
            if (kind == PRELU) { sa += z > 0 ? zero : g * z; g = z > 0 ? g : g * slope; }
            else { g = z > 0 ? g : zero; if (kind == RELU6) g = z < 6 ? g : zero; }
          }
          sb += g;
          sg += g * (a - mu);
        }
        add<L>(mine + k, sb);
        add<L>(mine + c + k, sg);
        add<L>(mine + 2 * c + k, sa);
      }
    }
  }
  std::vector<float> u(c), w(c);  // dx = scale * (g - u - (x - mean) * w)
  for (long k = 0; k < c; k++) {
    double b = 0, g = 0, a = 0;
    for (int t = 0; t < threads; t++)
      b += sums[3 * c * t + k], g += sums[3 * c * t + c + k], a += sums[3 * c * t + 2 * c + k];
    dbeta[k] = b;
    dgamma[k] = g * inverse[k];
    if (kind == PRELU) dalpha[k] = a;
    u[k] = b / rows;
    w[k] = g * inverse[k] * inverse[k] / rows;
  }
#pragma omp parallel for schedule(static) num_threads(threads)
  for (long start = 0; start < rows; start += BLOCK) {
    long end = std::min(rows, start + BLOCK);
    for (long k = 0; k < c; k += L) {
      f zero = v::all(0);
      f m = v::load(&scale[k]), b = v::load(&shift[k]), mu = v::load(mean + k), uu = v::load(&u[k]), ww = v::load(&w[k]);
      f slope = kind == PRELU ? v::load(alpha + k) : zero;
      for (long r = start; r < end; r++) {
        f a = v::load(x + r * c + k), g = v::load(dy + r * c + k);
        if (kind != LINEAR) {
          f z = a * m + b;
          if (kind == PRELU) g = z > 0 ? g : g * slope;
          else { g = z > 0 ? g : zero; if (kind == RELU6) g = z < 6 ? g : zero; }
        }
        v::store(dx + r * c + k, m * (g - uu - (a - mu) * ww));
      }
    }
  }
}

// Depthwise convolutions: x (n, h, w, c), y and dy (n, oh, ow, c), kernel (size, size, c); output pixel (p, q) sees
// input pixels (p * stride + a - top, q * stride + b - left).
struct Shape {
  long n, h, w, oh, ow, c, size, stride, top, left;
};

template <class T, int L>
static void depthwise(const T *x, const float *kernel, T *y, Shape s) {
  typedef V<L> v;
  typedef typename v::f f;
#pragma omp parallel for collapse(2) schedule(static)
  for (long i = 0; i < s.n; i++)
    for (long p = 0; p < s.oh; p++)
      for (long q = 0; q < s.ow; q++) {
        long top = p * s.stride - s.top, left = q * s.stride - s.left;
        long a0 = std::max(0L, -top), a1 = std::min(s.size, s.h - top);
        long b0 = std::max(0L, -left), b1 = std::min(s.size, s.w - left);
        for (long k = 0; k < s.c; k += L) {
          f sum = v::all(0);
          for (long a = a0; a < a1; a++)
            for (long b = b0; b < b1; b++)
              sum += v::load(x + ((i * s.h + top + a) * s.w + left + b) * s.c + k) *
                     v::load(kernel + (a * s.size + b) * s.c + k);
          v::store(y + ((i * s.oh + p) * s.ow + q) * s.c + k, sum);
        }
      }
}

// Gradient by the input: a sum over the outputs that saw each pixel.
template <class T, int L>
static void depthwise_input(const T *dy, const float *kernel, T *dx, Shape s) {
  typedef V<L> v;
  typedef typename v::f f;
#pragma omp parallel for collapse(2) schedule(static)
  for (long i = 0; i < s.n; i++)
    for (long y = 0; y < s.h; y++)
      for (long x = 0; x < s.w; x++) {
        const T *from[64];
        const float *by[64];
        int terms = 0;
        for (long a = 0; a < s.size; a++) {
          long p = y + s.top - a;
          if (p < 0 || p % s.stride || p / s.stride >= s.oh) continue;
          for (long b = 0; b < s.size; b++) {
            long q = x + s.left - b;
            if (q < 0 || q % s.stride || q / s.stride >= s.ow) continue;
            from[terms] = dy + ((i * s.oh + p / s.stride) * s.ow + q / s.stride) * s.c;
            by[terms++] = kernel + (a * s.size + b) * s.c;
          }
        }
        for (long k = 0; k < s.c; k += L) {
          f sum = v::all(0);
          for (int t = 0; t < terms; t++) sum += v::load(from[t] + k) * v::load(by[t] + k);
          v::store(dx + ((i * s.h + y) * s.w + x) * s.c + k, sum);
        }
      }
}

// Gradient by the kernel, of K x K pixels: K * K sums stay in registers along a row of outputs.
template <class T, int L, int K>
static void kernel_rows(const T *x, const T *dy, float *sums, Shape s, long i, long p, long k) {
  typedef V<L> v;
  typedef typename v::f f;
  f acc[K * K];
  for (int t = 0; t < K * K; t++) acc[t] = v::all(0);
  long top = p * s.stride - s.top, a0 = std::max(0L, -top), a1 = std::min((long)K, s.h - top);
  bool whole = a0 == 0 && a1 == K;
  for (long q = 0; q < s.ow; q++) {
    long left = q * s.stride - s.left, b0 = std::max(0L, -left), b1 = std::min((long)K, s.w - left);
    f g = v::load(dy + ((i * s.oh + p) * s.ow + q) * s.c + k);
    const T *corner = x + ((i * s.h + top) * s.w + left) * s.c + k;
    if (whole && b0 == 0 && b1 == K) {
#pragma GCC unroll 5
      for (int a = 0; a < K; a++)
#pragma GCC unroll 5
        for (int b = 0; b < K; b++) acc[a * K + b] += g * v::load(corner + (a * s.w + b) * s.c);
    } else {
#pragma GCC unroll 5
      for (int a = 0; a < K; a++)
#pragma GCC unroll 5
        for (int b = 0; b < K; b++)
          if (a >= a0 && a < a1 && b >= b0 && b < b1) acc[a * K + b] += g * v::load(corner + (a * s.w + b) * s.c);
    }
  }
#pragma GCC unroll 25
  for (int t = 0; t < K * K; t++) v::store(sums + t * s.c + k, v::load(sums + t * s.c + k) + acc[t]);
}

template <class T, int L>
static void depthwise_kernel(const T *x, const T *dy, float *dkernel, Shape s) {
  const int threads = omp_get_max_threads();
  long numbers = s.size * s.size * s.c;
  std::vector<float> sums(numbers * threads, 0.0f);
#pragma omp parallel num_threads(threads)
  {
    float *mine = &sums[numbers * omp_get_thread_num()];
#pragma omp for collapse(2) schedule(static)
    for (long i = 0; i < s.n; i++)
      for (long p = 0; p < s.oh; p++)
        for (long k = 0; k < s.c; k += L) {
          if (s.size == 3) kernel_rows<T, L, 3>(x, dy, mine, s, i, p, k);
          else kernel_rows<T, L, 5>(x, dy, mine, s, i, p, k);
        }
  }
  for (long j = 0; j < numbers; j++) {
    float sum = 0;
    for (int t = 0; t < threads; t++) sum += sums[numbers * t + j];
    dkernel[j] = sum;
  }
}

#define BOTH_WIDTHS(NAME, T, ...) (c % 16 ? NAME<T, 8>(__VA_ARGS__) : NAME<T, 16>(__VA_ARGS__))
#define EACH_TYPE(SUFFIX, T)                                                                                        \
  extern "C" void norm_forward_##SUFFIX(const T *x, const T *residual, T *y, long rows, long c, const float *gamma,  \
                                        const float *beta, const float *alpha, int kind, float eps, int training,   \
                                        float *mean, float *inverse, float *variance) {                             \
    BOTH_WIDTHS(forward, T, x, residual, y, rows, c, gamma, beta, alpha, kind, eps, training, mean, inverse,      \
                variance);                                                                                         \
  }                                                                                                                 \
  extern "C" void norm_backward_##SUFFIX(const T *x, const T *dy, T *dx, long rows, long c, const float *gamma,      \
                                         const float *beta, const float *alpha, int kind, const float *mean,        \
                                         const float *inverse, float *dgamma, float *dbeta, float *dalpha) {        \
    BOTH_WIDTHS(backward, T, x, dy, dx, rows, c, gamma, beta, alpha, kind, mean, inverse, dgamma, dbeta, dalpha);    \
  }                                                                                                                 \
  extern "C" void depthwise_##SUFFIX(const T *x, const float *kernel, T *y, const long *shape) {                     \
    Shape s = *(const Shape *)shape;                                                                                \
    long c = s.c;                                                                                                   \
    BOTH_WIDTHS(depthwise, T, x, kernel, y, s);                                                                      \
  }                                                                                                                 \
  extern "C" void depthwise_input_##SUFFIX(const T *dy, const float *kernel, T *dx, const long *shape) {             \
    Shape s = *(const Shape *)shape;                                                                                \
    long c = s.c;                                                                                                   \
    BOTH_WIDTHS(depthwise_input, T, dy, kernel, dx, s);                                                              \
  }                                                                                                                 \
  extern "C" void depthwise_kernel_##SUFFIX(const T *x, const T *dy, float *dkernel, const long *shape) {            \
    Shape s = *(const Shape *)shape;                                                                                \
    long c = s.c;                                                                                                   \
    BOTH_WIDTHS(depthwise_kernel, T, x, dy, dkernel, s);                                                             \
  }
EACH_TYPE(float32, float)
EACH_TYPE(bfloat16, uint16_t)
