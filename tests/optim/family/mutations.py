"""Mistakes that a kernel could make in each optimizer beside Adam; parity has to see each.

`contracted` is test_parity's.
"""

from adamd_service.optim.family import adagrad, adamax, fedopt, lion, nadam, radam, rmsprop, schedule_free, sgd, yogi

M_FLUSHED = "m = where((-tiny < m) & (m < tiny), zero, m)"
V_FLUSHED = "v = where(v < tiny, zero, v)"
BUF_FLUSHED = "buf = where((-tiny < buf) & (buf < tiny), zero, buf)"
MUTATIONS = {
    nadam.nadam: {
        "contracted m": ("m = b1 * m + one_minus_b1 * g", "m = contracted(b1, m, one_minus_b1 * g)"),
        "contracted v": ("v = b2 * v + one_minus_b2 * (g * g)", "v = contracted(b2, v, one_minus_b2 * (g * g))"),
        "contracted p, g's step": ("p = p - g_step * q", "p = contracted(-g_step, q, p)"),
        "contracted p, m's step": ("p = p - m_step * q", "p = contracted(-m_step, q, p)"),
        "contracted decay": ("g = g + wd * p", "g = contracted(wd, p, g)"),
        "m not flushed": (M_FLUSHED, "m = m"),
        "v not flushed": (V_FLUSHED, "v = v"),
        "<= for < (v)": ("where(v < tiny", "where(v <= tiny"),
        "g / d not guarded": ("q = where(d == zero, zero, g / d)", "q = g / d"),
        "m / d not guarded": ("q = where(d == zero, zero, m / d)", "q = m / d"),
    },
    radam.radam: {
        "contracted m": ("m = b1 * m + one_minus_b1 * g", "m = contracted(b1, m, one_minus_b1 * g)"),
        "contracted p": ("p = p - step_size * u", "p = contracted(-step_size, u, p)"),
        "reassociated": (
            "q = where(d == zero, zero, m / d)",
            "q = where(d == zero, zero, m) / where(d == zero, b1, d / rect * rect)",
        ),
        "lerp": ("m = b1 * m + one_minus_b1 * g", "m = m + one_minus_b1 * (g - m)"),
        "m not flushed": (M_FLUSHED, "m = m"),
        "v not flushed": (V_FLUSHED, "v = v"),
        "not guarded": ("q = where(d == zero, zero, m / d)", "q = m / d"),
    },
    adamax.adamax: {
        "contracted m": ("m = b1 * m + one_minus_b1 * g", "m = contracted(b1, m, one_minus_b1 * g)"),
        "contracted p": ("p = p - step_size * q", "p = contracted(-step_size, q, p)"),
        "reassociated p": ("p = p - step_size * q", "p = p - where(u == zero, zero, step_size * m / u)"),
        "eps after the maximum": ("q = where(u == zero, zero, m / u)", "q = where(u == zero, zero, m / (u + eps))"),
        "the sum for the maximum": ("u = where(a > u, a, u)", "u = a + u"),
        "u not flushed": ("u = where(u < tiny, zero, u)", "u = u"),
        "<= for < (u)": ("where(u < tiny", "where(u <= tiny"),
        "m not flushed": (M_FLUSHED, "m = m"),
        "not guarded": ("q = where(u == zero, zero, m / u)", "q = m / u"),
    },
    yogi.yogi: {
        "contracted m": ("m = b1 * m + one_minus_b1 * g", "m = contracted(b1, m, one_minus_b1 * g)"),
        "contracted v": ("v = where(v > s, v - c,", "v = where(v > s, contracted(-one_minus_b2, s, v),"),
        "contracted p": ("p = p - step_size * q", "p = contracted(-step_size, q, p)"),
        "reassociated c": ("c = one_minus_b2 * s", "c = (one_minus_b2 * g) * g"),
        ">= for >": ("where(v > s", "where(v >= s"),
        "<= for <": ("where(v < s", "where(v <= s"),
        "v not flushed": (V_FLUSHED, "v = v"),
        "m not flushed": (M_FLUSHED, "m = m"),
        "not guarded": ("q = where(d == zero, zero, m / d)", "q = m / d"),
    },
    adagrad.adagrad: {
        "contracted s": ("s = s + g * g", "s = contracted(g, g, s)"),
        "contracted p": ("p = p - step_size * q", "p = contracted(-step_size, q, p)"),
        "reassociated p": ("p = p - step_size * q", "p = p - where(d == zero, zero, step_size * g / d)"),
        "s flushed": ("s = s + g * g", "s = where(s + g * g < TINY[s.dtype], zero, s + g * g)"),
        "not guarded": ("q = where(d == zero, zero, g / d)", "q = g / d"),
    },
    rmsprop.rmsprop: {
        "contracted v": (
            "v = alpha * v + one_minus_alpha * (g * g)",
            "v = contracted(alpha, v, one_minus_alpha * (g * g))",
        ),
        "contracted a": ("a = alpha * a + one_minus_alpha * g", "a = contracted(alpha, a, one_minus_alpha * g)"),
        "contracted variance": ("s = v - a * a", "s = contracted(-a, a, v)"),
        "contracted buf": ("buf = momentum * buf + q", "buf = contracted(momentum, buf, q)"),
        "contracted p": ("p = p - step_size * q", "p = contracted(-step_size, q, p)"),
        "variance below 0": ("s = where(s < zero, zero, s)", "s = s"),
        "v not flushed": (V_FLUSHED, "v = v"),
        "<= for < (v)": ("where(v < tiny", "where(v <= tiny"),
        "a not flushed": ("a = where((-tiny < a) & (a < tiny), zero, a)", "a = a"),
        "buf not flushed": (BUF_FLUSHED, "buf = buf"),
        "not guarded": ("q = where(d == zero, zero, g / d)", "q = g / d"),
    },
    sgd.sgd: {
        "contracted buf": ("buf = momentum * buf + gain * g", "buf = contracted(momentum, buf, gain * g)"),
        "contracted ahead": ("q = g + ahead * buf", "q = contracted(ahead, buf, g)"),
        "contracted p": ("p = p - step_size * q", "p = contracted(-step_size, q, p)"),
        "contracted decay": ("g = g + wd * p", "g = contracted(wd, p, g)"),
        "not flushed": (BUF_FLUSHED, "buf = buf"),
        "flushed keeping the sign": ("(buf < tiny), zero, buf)", "(buf < tiny), zero * buf, buf)"),
        "<= for <": ("& (buf < tiny)", "& (buf <= tiny)"),
    },
    lion.lion: {
        "contracted c": ("c = b1 * m + one_minus_b1 * g", "c = contracted(b1, m, one_minus_b1 * g)"),
        "contracted m": ("m = b2 * m + one_minus_b2 * g", "m = contracted(b2, m, one_minus_b2 * g)"),
        "contracted decay": ("u = u + step_decay * p", "u = contracted(step_decay, p, u)"),
        ">= for >": ("where(c > zero", "where(c >= zero"),
        "<= for <": ("where(c < zero", "where(c <= zero"),
        "not flushed": (M_FLUSHED, "m = m"),
        "reassociated": (
            "p = p - u",
            "p = p - where(c > zero, step_size, where(c < zero, -step_size, zero)) - (u - where(c > zero, step_size, where(c < zero, -step_size, zero)))",
        ),
    },
    fedopt.fedadagrad: {
        "contracted m": ("m = b1 * m + one_minus_b1 * g", "m = contracted(b1, m, one_minus_b1 * g)"),
        "contracted s": ("s = s + g * g", "s = contracted(g, g, s)"),
        "contracted p": ("p = p - step_size * q", "p = contracted(-step_size, q, p)"),
        "reassociated p": ("p = p - step_size * q", "p = p - where(d == zero, zero, step_size * m / d)"),
        "lerp": ("m = b1 * m + one_minus_b1 * g", "m = m + one_minus_b1 * (g - m)"),
        "m not flushed": (M_FLUSHED, "m = m"),
        "s flushed": ("s = s + g * g", "s = where(s + g * g < TINY[s.dtype], zero, s + g * g)"),
        "not guarded": ("q = where(d == zero, zero, m / d)", "q = m / d"),
    },
    schedule_free.schedule_free_adamw: {
        "contracted v": ("v = b2 * v + one_minus_b2 * (g * g)", "v = contracted(b2, v, one_minus_b2 * (g * g))"),
        "contracted average": ("p = p + average * (z - p)", "p = contracted(average, z - p, p)"),
        "contracted y": ("p = p - y_step * q", "p = contracted(-y_step, q, p)"),
        "contracted z": ("z = z - step_size * q", "z = contracted(-step_size, q, z)"),
        "contracted decay": ("q = q + wd * p", "q = contracted(wd, p, q)"),
        "reassociated average": ("p = p + average * (z - p)", "p = average * z + (b2 / b2 - average) * p"),
        "v not flushed": (V_FLUSHED, "v = v"),
        "<= for < (v)": ("where(v < tiny", "where(v <= tiny"),
        "not guarded": ("q = where(d == zero, zero, g / d)", "q = g / d"),
    },
}
