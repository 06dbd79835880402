//! Roots, logarithms and powers of numerics, to the scale that PostgreSQL chooses.
//!
//! All is fixed-point integer arithmetic with guard digits: a value is `mantissa / 10^p`. The last digit can differ
//! from an exact rounding only when the guard digits are all 9 or all 0.

use super::*;

/// Guard digits of the series.
const GUARD: u32 = 12;
/// Most digits that a series is summed to: more would take seconds. A power that needs more is 54000.
const SERIES_DIGITS_MAX: u32 = 4_000;
const LN_10: f64 = std::f64::consts::LN_10;

fn clamp_scale(rscale: i64, dscale: u16) -> u16 {
    rscale.max(dscale as i64).clamp(0, DISPLAY_SCALE_MAX) as u16
}

/// exp(x) of a fixed-point number with `p` digits, |x| of moderate size.
fn exp_fixed(x: &BigInt, p: u32) -> BigInt {
    let one = pow10(p);
    // Halve until small, so that the series is short; square as often afterwards.
    let mut halvings = 0u32;
    let mut y = x.clone();
    let small = &one / 64;
    while y.abs() > small {
        y /= 2;
        halvings += 1;
    }
    let mut sum = one.clone();
    let mut term = one.clone();
    let mut n = 1u32;
    while !term.is_zero() {
        term = term * &y / &one / n;
        sum += &term;
        n += 1;
    }
    for _ in 0..halvings {
        sum = &sum * &sum / &one;
    }
    sum
}

/// ln(m / 10^scale) with `p` digits after the point; the argument is positive.
fn ln_fixed(m: &BigInt, scale: u16, p: u32) -> BigInt {
    let work = p + 16;
    let one = pow10(work);
    // x = f * 10^e with f in [1, 10)
    let digits = decimal_digits(m) as i64;
    let e = digits - 1 - scale as i64;
    let shift = work as i64 - (digits - 1);
    let f = if shift >= 0 { m * pow10(shift as u32) } else { m / pow10(-shift as u32) };
    let ln_f = ln_near_one(&f, work, &one);
    let ln_10 = ln_near_one(&(&one * 10), work, &one);
    (ln_f + ln_10 * e) / pow10(16)
}

/// ln of a fixed-point number in [0.1, 10], by square roots and the series of atanh.
fn ln_near_one(f: &BigInt, work: u32, one: &BigInt) -> BigInt {
    let mut f = f.clone();
    let mut doublings = 0u32;
    let near = one / 20;
    while (&f - one).abs() > near {
        f = (&f * one).sqrt();
        doublings += 1;
    }
    let y = (&f - one) * one / (&f + one);
    let y2 = &y * &y / one;
    let mut sum = BigInt::zero();
    let mut power = y;
    let mut n = 1u32;
    while !power.is_zero() {
        sum += &power / n;
        power = power * &y2 / one;
        n += 2;
    }
    let _ = work;
    (sum * 2u32) << doublings
}

impl Numeric {
    /// The weight of the first digit in base 10,000, in digits.
    fn weight_digits(&self) -> i64 {
        self.base_10000().0 * 4
    }

    /// The square root. 2201F for a negative number.
    pub fn sqrt(&self) -> Result<Numeric> {
        if self.is_nan() {
            return Ok(Numeric::NAN);
        }
        if self.signum() < 0 {
            return Err(Error::new(
                SqlState::INVALID_ARGUMENT_FOR_POWER_FUNCTION,
                "cannot take square root of a negative number",
            ));
        }
        if !self.is_finite() {
            return Ok(self.clone());
        }
        let w = self.weight_digits();
        let sweight = if w >= 0 { w / 2 + 1 } else { 1 - (1 - w) / 2 };
        self.sqrt_to_scale(clamp_scale(SIG_DIGITS_MIN - sweight, self.scale()))
    }

    /// The square root of a finite value that is not negative, rounded to a scale.
    pub(crate) fn sqrt_to_scale(&self, rscale: u16) -> Result<Numeric> {
        let Some((m, s)) = self.big_parts() else { return Ok(Numeric::NAN) };
        // sqrt(m / 10^s) at one digit more than asked for, then rounded.
        let want = 2 * (rscale as i64 + 1) - s as i64;
        let n = if want >= 0 { m * pow10(want as u32) } else { m / pow10(-want as u32) };
        Numeric::new_big(div_round(&n.sqrt(), &BigInt::from(10)), rscale)
    }

    /// Fixed point with `p` digits, towards zero.
    fn fixed(&self, p: u32) -> BigInt {
        let Some((m, s)) = self.big_parts() else { return BigInt::zero() };
        let shift = p as i64 - s as i64;
        if shift >= 0 { m * pow10(shift as u32) } else { m / pow10(-shift as u32) }
    }

    fn from_fixed(m: BigInt, p: u32, rscale: u16) -> Result<Numeric> {
        let drop = p as i64 - rscale as i64;
        let m = if drop >= 0 { div_round(&m, &pow10(drop as u32)) } else { m * pow10(-drop as u32) };
        Numeric::new_big(m, rscale)
    }

    /// e to the power of the value. 22003 when the result is too large.
    pub fn exp(&self) -> Result<Numeric> {
        if !self.is_finite() {
            return Ok(if self.signum() < 0 { Numeric::ZERO } else { self.clone() });
        }
        let x = self.to_f64();
        let weight = (x / LN_10).clamp(-2000.0, 2000.0) as i64;
        let rscale = clamp_scale(SIG_DIGITS_MIN - weight, self.scale());
        if x.abs() >= 6_000.0 {
            return if x > 0.0 { Err(overflow()) } else { Ok(Numeric::from_parts(0, rscale)) };
        }
        let p = (rscale as i64 + weight.max(0) + GUARD as i64 + 8) as u32;
        Numeric::from_fixed(exp_fixed(&self.fixed(p), p), p, rscale)
    }

    fn check_log_argument(&self) -> Result<()> {
        let say = |m| Err(Error::new(SqlState::INVALID_ARGUMENT_FOR_LOGARITHM, m));
        match self.signum() {
            0 if !self.is_nan() => say("cannot take logarithm of zero"),
            -1 => say("cannot take logarithm of a negative number"),
            _ => Ok(()),
        }
    }

    /// PostgreSQL's estimate of the decimal weight of the natural logarithm.
    fn ln_weight(&self) -> i64 {
        let x = self.to_f64();
        if (0.9..=1.1).contains(&x) {
            let d = self.sub(&Numeric::ONE).unwrap_or(Numeric::ZERO);
            if d.is_zero() {
                return 0;
            }
            return d.exponent();
        }
        // The logarithm itself fits a double whatever the size of the value.
        let ln = if x.is_finite() && x > 0.0 { x.ln() } else { self.exponent() as f64 * LN_10 };
        ln.abs().log10() as i64
    }

    /// The natural logarithm. 2201E unless positive.
    pub fn ln(&self) -> Result<Numeric> {
        self.check_log_argument()?;
        let Some((m, s)) = self.big_parts() else { return Ok(self.clone()) };
        let rscale = clamp_scale(SIG_DIGITS_MIN - self.ln_weight(), self.scale());
        let p = rscale as u32 + GUARD;
        Numeric::from_fixed(ln_fixed(&m, s, p), p, rscale)
    }

    /// The logarithm to a base. 2201E unless both are positive; 22012 for base 1.
    pub fn log(base: &Numeric, value: &Numeric) -> Result<Numeric> {
        base.check_log_argument()?;
        value.check_log_argument()?;
        let (Some((bm, bs)), Some((vm, vs))) = (base.big_parts(), value.big_parts()) else {
            return if base.is_nan() || value.is_nan() || (!base.is_finite() && !value.is_finite()) {
                Ok(Numeric::NAN)
            } else if base.is_finite() {
                Ok(Numeric::INFINITY)
            } else {
                Ok(Numeric::ZERO)
            };
        };
        let weight = value.ln_weight() - base.ln_weight();
        let rscale = clamp_scale(SIG_DIGITS_MIN - weight, base.scale().max(value.scale()));
        let p = (rscale as i64 + weight.abs() + GUARD as i64 + 8) as u32;
        let d = ln_fixed(&bm, bs, p);
        if d.is_zero() {
            return Err(Error::division_by_zero());
        }
        let q = ln_fixed(&vm, vs, p) * pow10(p) / d;
        Numeric::from_fixed(q, p, rscale)
    }

    /// `self ^ exponent`. 2201F for a negative base with a fraction, or zero with a negative power; 22003.
    pub fn power(&self, exponent: &Numeric) -> Result<Numeric> {
        let bad = |m| Err(Error::new(SqlState::INVALID_ARGUMENT_FOR_POWER_FUNCTION, m));
        if self.is_nan() || exponent.is_nan() {
            let one = (exponent.is_zero() && !exponent.is_nan()) || (*self == Numeric::ONE && !self.is_nan());
            return Ok(if one { Numeric::ONE } else { Numeric::NAN });
        }
        if self.is_zero() && exponent.signum() < 0 {
            return bad("zero raised to a negative power is undefined");
        }
        let whole = !exponent.is_finite() || exponent.trunc(0) == *exponent;
        if self.signum() < 0 && !whole {
            return bad("a negative number raised to a non-integer power yields a complex result");
        }
        if !self.is_finite() || !exponent.is_finite() {
            // The doubles know the limits.
            let r = self.to_f64().powf(exponent.to_f64());
            return Ok(if r.is_infinite() || r == 0.0 || r == 1.0 {
                Numeric::from_f64(r)
            } else {
                Numeric::NAN
            });
        }
        if whole && let Some(n) = exponent.to_i64().and_then(|n| i32::try_from(n).ok()) {
            return self.power_int(n);
        }
        if self.is_zero() {
            return Ok(Numeric::from_parts(0, SIG_DIGITS_MIN as u16));
        }
        let negative = self.signum() < 0 && exponent.rem(&2.into())?.signum() != 0;
        let base = self.abs();
        let ln10 = if base.to_f64().is_normal() { base.to_f64().log10() } else { base.exponent() as f64 };
        let weight = exponent.to_f64() * ln10;
        if weight > WEIGHT_DIGITS_MAX as f64 {
            return Err(overflow());
        }
        let dscale = self.scale().max(exponent.scale());
        let rscale = clamp_scale(SIG_DIGITS_MIN - weight.clamp(-2000.0, 2000.0) as i64, dscale);
        if weight + 1.0 < -DISPLAY_SCALE_MAX as f64 {
            return Ok(Numeric::from_parts(0, DISPLAY_SCALE_MAX as u16));
        }
        let p = (rscale as i64 + weight.max(0.0) as i64 + GUARD as i64 + 16) as u32;
        if p > SERIES_DIGITS_MAX {
            return Err(Error::new(
                SqlState::PROGRAM_LIMIT_EXCEEDED,
                format!("a power with a fraction needs {p} digits, of at most {SERIES_DIGITS_MAX}"),
            ));
        }
        let Some((m, s)) = base.big_parts() else { return Ok(Numeric::NAN) };
        let x = ln_fixed(&m, s, p + exponent.exponent().max(0) as u32) * exponent.fixed(p)
            / pow10(p + exponent.exponent().max(0) as u32);
        let r = Numeric::from_fixed(exp_fixed(&x, p), p, rscale)?;
        Ok(if negative { r.neg() } else { r })
    }

    /// The scale is 16 digits or the base's, as PostgreSQL chooses up to its version 15.
    fn power_int(&self, n: i32) -> Result<Numeric> {
        let Some((m, s)) = self.big_parts() else { return Ok(Numeric::NAN) };
        let weight = if self.is_zero() {
            0.0
        } else {
            let text = m.magnitude().to_string();
            let head: f64 = text[..text.len().min(17)].parse().unwrap_or(1.0);
            n as f64 * (head.log10() + (text.len() - text.len().min(17)) as f64 - s as f64)
        };
        if weight > WEIGHT_DIGITS_MAX as f64 {
            return Err(overflow());
        }
        let rscale = clamp_scale(SIG_DIGITS_MIN, self.scale());
        if weight + 1.0 < -(rscale as f64) {
            return Ok(Numeric::from_parts(0, rscale));
        }
        // Powers of a truncated mantissa: enough digits for the result and the errors of every multiplication.
        let keep = (weight.abs() as i64 + rscale as i64 + GUARD as i64 + 24) as u64;
        let keep_bits = keep * 10 / 3 + 64;
        let mut result = (BigInt::from(1), 0i64);
        let mut square = (m, s as i64);
        let mut k = n.unsigned_abs();
        let cut = |(m, s): (BigInt, i64)| {
            let excess = m.bits().saturating_sub(keep_bits) * 3 / 10;
            if excess > 0 { (m / pow10(excess as u32), s - excess as i64) } else { (m, s) }
        };
        while k > 0 {
            if k & 1 == 1 {
                result = cut((&result.0 * &square.0, result.1 + square.1));
            }
            k >>= 1;
            if k > 0 {
                square = cut((&square.0 * &square.0, square.1 * 2));
            }
        }
        let (mut m, mut s) = result;
        if n < 0 {
            // 1 / (m / 10^s) at `rscale` and guard digits
            let p = rscale as i64 + GUARD as i64 + s;
            let one = if p >= 0 { pow10(p as u32) } else { BigInt::zero() };
            m = div_round(&one, &m);
            s = rscale as i64 + GUARD as i64;
        }
        let drop = s - rscale as i64;
        let m = if drop >= 0 { div_round(&m, &pow10(drop as u32)) } else { m * pow10(-drop as u32) };
        Numeric::new_big(m, rscale)
    }
}
