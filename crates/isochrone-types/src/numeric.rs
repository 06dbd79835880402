//! PostgreSQL's `numeric`: a decimal of any size with a display scale, or NaN, or an infinity.
//!
//! A finite value is an integer mantissa and a scale (digits after the point, 0 to 16,383): `1.50` is 150 at scale 2.
//! Mantissas of 64 bits live in the value itself; larger ones are shared on the heap.
//!
//! Invariants
//!   N1  A mantissa that fits 64 bits is stored small, so a mantissa has one representation.
//!   N2  The scale is what PostgreSQL displays; it never takes part in order, equality or hash.
//!   N3  Results have at most 131,072 digits before the point; more is 22003.
//!
//! Rounding is half away from zero. The scale of a quotient, root, logarithm or power is chosen as PostgreSQL does
//! (at least 16 significant digits).

use crate::error::{Error, Result, SqlState};
use num_bigint::BigInt;
use num_integer::Integer;
use num_traits::{Signed, ToPrimitive, Zero};
use std::cmp::Ordering;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

mod math;
#[cfg(test)]
mod tests;

/// Most digits after the point that a value can carry.
pub const SCALE_MAX: u16 = 16_383;
/// Most digits before the point.
pub const WEIGHT_DIGITS_MAX: i64 = 131_072;
/// Least significant digits of a quotient.
const SIG_DIGITS_MIN: i64 = 16;
/// Most digits after the point that division and its like choose by themselves.
const DISPLAY_SCALE_MAX: i64 = 1_000;

/// A `numeric` value. Two words.
#[derive(Clone)]
pub struct Numeric(Repr);

#[derive(Clone)]
enum Repr {
    Small { m: i64, scale: u16 },
    Big(Arc<Big>),
    NaN,
    PosInf,
    NegInf,
}

struct Big {
    m: BigInt,
    scale: u16,
}

/// Ten to the power of `n`, for `n` up to 38.
fn pow10_i128(n: u32) -> Option<i128> {
    10i128.checked_pow(n)
}

fn pow10(n: u32) -> BigInt {
    match pow10_i128(n) {
        Some(p) => BigInt::from(p),
        None => BigInt::from(10).pow(n),
    }
}

/// Divides, rounding half away from zero.
fn div_round(n: &BigInt, d: &BigInt) -> BigInt {
    let (q, r) = n.div_rem(d);
    if (r.abs() * 2u32) >= d.abs() {
        if n.is_negative() == d.is_negative() { q + 1 } else { q - 1 }
    } else {
        q
    }
}

fn div_round_i128(n: i128, d: i128) -> Option<i128> {
    let (q, r) = (n.checked_div(d)?, n.checked_rem(d)?);
    let twice = r.unsigned_abs().checked_mul(2)?;
    Some(if twice >= d.unsigned_abs() { if (n < 0) == (d < 0) { q + 1 } else { q - 1 } } else { q })
}

#[cold]
fn overflow() -> Error {
    Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format")
}

impl Numeric {
    /// Zero at scale 0.
    pub const ZERO: Numeric = Numeric(Repr::Small { m: 0, scale: 0 });
    /// One at scale 0.
    pub const ONE: Numeric = Numeric(Repr::Small { m: 1, scale: 0 });
    /// Not a number.
    pub const NAN: Numeric = Numeric(Repr::NaN);
    /// Positive infinity.
    pub const INFINITY: Numeric = Numeric(Repr::PosInf);
    /// Negative infinity.
    pub const NEG_INFINITY: Numeric = Numeric(Repr::NegInf);

    /// `mantissa` shifted right by `scale` decimal digits.
    #[inline]
    pub fn from_parts(mantissa: i64, scale: u16) -> Numeric {
        Numeric(Repr::Small { m: mantissa, scale: scale.min(SCALE_MAX) })
    }

    /// An integer.
    pub fn from_i128(v: i128) -> Numeric {
        Numeric::new_i128(v, 0)
    }

    #[inline]
    fn new_i128(m: i128, scale: u16) -> Numeric {
        match i64::try_from(m) {
            Ok(m) => Numeric(Repr::Small { m, scale }),
            Err(_) => Numeric(Repr::Big(Arc::new(Big { m: BigInt::from(m), scale }))),
        }
    }

    fn new_big(m: BigInt, scale: u16) -> Result<Numeric> {
        match m.to_i64() {
            Some(m) => Ok(Numeric(Repr::Small { m, scale })),
            None => {
                // 3.33 bits are more than one decimal digit: cheap check first.
                if m.bits() as i64 > (WEIGHT_DIGITS_MAX + scale as i64) * 33 / 10
                    && decimal_digits(&m) as i64 - scale as i64 > WEIGHT_DIGITS_MAX
                {
                    return Err(overflow());
                }
                Ok(Numeric(Repr::Big(Arc::new(Big { m, scale }))))
            }
        }
    }

    /// Mantissa and scale of a finite value.
    fn big_parts(&self) -> Option<(BigInt, u16)> {
        match &self.0 {
            Repr::Small { m, scale } => Some((BigInt::from(*m), *scale)),
            Repr::Big(b) => Some((b.m.clone(), b.scale)),
            _ => None,
        }
    }

    /// Mantissa and scale when the mantissa fits 64 bits.
    pub fn small_parts(&self) -> Option<(i64, u16)> {
        match &self.0 {
            Repr::Small { m, scale } => Some((*m, *scale)),
            _ => None,
        }
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Repr::Big(b) => 48 + (b.m.bits() / 8) as usize,
            _ => 0,
        }
    }

    /// The digits after the point that are displayed; 0 for NaN and the infinities.
    pub fn scale(&self) -> u16 {
        match &self.0 {
            Repr::Small { scale, .. } => *scale,
            Repr::Big(b) => b.scale,
            _ => 0,
        }
    }

    /// Is it NaN?
    pub fn is_nan(&self) -> bool {
        matches!(self.0, Repr::NaN)
    }

    /// Is it neither NaN nor infinite?
    pub fn is_finite(&self) -> bool {
        matches!(self.0, Repr::Small { .. } | Repr::Big(_))
    }

    /// Is it zero?
    pub fn is_zero(&self) -> bool {
        matches!(self.0, Repr::Small { m: 0, .. })
    }

    /// -1, 0 or 1; 0 for NaN.
    pub fn signum(&self) -> i32 {
        match &self.0 {
            Repr::Small { m, .. } => m.signum() as i32,
            Repr::Big(b) => {
                if b.m.is_negative() {
                    -1
                } else {
                    1
                }
            }
            Repr::NaN => 0,
            Repr::PosInf => 1,
            Repr::NegInf => -1,
        }
    }

    /// `-self`
    #[allow(clippy::should_implement_trait)]
    pub fn neg(&self) -> Numeric {
        match &self.0 {
            Repr::Small { m, scale } => Numeric::new_i128(-(*m as i128), *scale),
            Repr::Big(b) => Numeric::new_big(-b.m.clone(), b.scale).expect("as many digits as before"),
            Repr::NaN => Numeric::NAN,
            Repr::PosInf => Numeric::NEG_INFINITY,
            Repr::NegInf => Numeric::INFINITY,
        }
    }

    /// The absolute value.
    pub fn abs(&self) -> Numeric {
        if self.signum() < 0 { self.neg() } else { self.clone() }
    }

    fn add_signed(&self, other: &Numeric, sign: i64) -> Result<Numeric> {
        if let (Repr::Small { m: a, scale: s }, Repr::Small { m: b, scale: t }) = (&self.0, &other.0) {
            let b = *b as i128 * sign as i128;
            if s == t {
                return Ok(Numeric::new_i128(*a as i128 + b, *s));
            }
            let diff = s.abs_diff(*t) as u32;
            if diff <= 18 {
                let p = 10i128.pow(diff);
                return Ok(if s < t {
                    Numeric::new_i128(*a as i128 * p + b, *t)
                } else {
                    Numeric::new_i128(*a as i128 + b * p, *s)
                });
            }
        }
        match (self.big_parts(), other.big_parts()) {
            (Some((mut a, s)), Some((mut b, t))) => {
                let scale = s.max(t);
                a *= pow10((scale - s) as u32);
                b *= pow10((scale - t) as u32);
                Numeric::new_big(if sign < 0 { a - b } else { a + b }, scale)
            }
            _ if self.is_nan() || other.is_nan() => Ok(Numeric::NAN),
            (Some(_), None) => Ok(if sign < 0 { other.neg() } else { other.clone() }),
            (None, Some(_)) => Ok(self.clone()),
            (None, None) => {
                Ok(if self.signum() == other.signum() * sign as i32 { self.clone() } else { Numeric::NAN })
            }
        }
    }

    /// `self + other`
    #[inline]
    pub fn add(&self, other: &Numeric) -> Result<Numeric> {
        self.add_signed(other, 1)
    }

    /// `self - other`
    #[inline]
    pub fn sub(&self, other: &Numeric) -> Result<Numeric> {
        self.add_signed(other, -1)
    }

    /// `self * other`; the scales add up.
    pub fn mul(&self, other: &Numeric) -> Result<Numeric> {
        if let (Repr::Small { m: a, scale: s }, Repr::Small { m: b, scale: t }) = (&self.0, &other.0)
            && s + t <= SCALE_MAX
        {
            return Ok(Numeric::new_i128(*a as i128 * *b as i128, s + t));
        }
        match (self.big_parts(), other.big_parts()) {
            (Some((a, s)), Some((b, t))) => {
                let scale = s + t;
                if scale > SCALE_MAX {
                    let m = div_round(&(a * b), &pow10((scale - SCALE_MAX) as u32));
                    return Numeric::new_big(m, SCALE_MAX);
                }
                Numeric::new_big(a * b, scale)
            }
            _ if self.is_nan() || other.is_nan() => Ok(Numeric::NAN),
            _ => Ok(match self.signum() * other.signum() {
                0 => Numeric::NAN,
                1 => Numeric::INFINITY,
                _ => Numeric::NEG_INFINITY,
            }),
        }
    }

    /// Weight and first digit in base 10,000, as PostgreSQL stores a value. Zero: (0, 0).
    fn base_10000(&self) -> (i64, u32) {
        let (digits, scale) = match &self.0 {
            Repr::Small { m: 0, .. } => return (0, 0),
            Repr::Small { m, scale } => {
                let abs = m.unsigned_abs();
                let n = abs.ilog10() as i64 + 1;
                let e = n - 1 - *scale as i64;
                let weight = e.div_euclid(4);
                let want = e - 4 * weight + 1;
                let first = if n >= want {
                    abs / 10u64.pow((n - want) as u32)
                } else {
                    abs * 10u64.pow((want - n) as u32)
                };
                return (weight, first as u32);
            }
            Repr::Big(b) => (b.m.magnitude().to_string(), b.scale),
            _ => return (0, 0),
        };
        let e = digits.len() as i64 - 1 - scale as i64;
        let weight = e.div_euclid(4);
        let want = (e - 4 * weight + 1) as usize;
        let first = digits.bytes().take(want).fold(0u32, |a, d| a * 10 + (d - b'0') as u32);
        (weight, first)
    }

    /// PostgreSQL's `select_div_scale`.
    fn div_scale(&self, other: &Numeric) -> u16 {
        let (w1, f1) = self.base_10000();
        let (w2, f2) = other.base_10000();
        let mut qweight = w1 - w2;
        if f1 <= f2 {
            qweight -= 1;
        }
        (SIG_DIGITS_MIN - qweight * 4)
            .max(self.scale() as i64)
            .max(other.scale() as i64)
            .clamp(0, DISPLAY_SCALE_MAX) as u16
    }

    /// `self / other`. 22012 for division by zero.
    pub fn div(&self, other: &Numeric) -> Result<Numeric> {
        if !self.is_finite() || !other.is_finite() {
            if self.is_nan() || other.is_nan() {
                return Ok(Numeric::NAN);
            }
            return match (self.is_finite(), other.is_finite()) {
                (false, false) => Ok(Numeric::NAN),
                (true, _) => Ok(Numeric::ZERO),
                _ => match self.signum() * other.signum() {
                    0 => Err(Error::division_by_zero()),
                    1 => Ok(Numeric::INFINITY),
                    _ => Ok(Numeric::NEG_INFINITY),
                },
            };
        }
        if other.is_zero() {
            return Err(Error::division_by_zero());
        }
        self.div_to_scale(other, self.div_scale(other))
    }

    /// The quotient of two finite values, the second not zero, at a scale.
    fn div_to_scale(&self, other: &Numeric, rscale: u16) -> Result<Numeric> {
        // The quotient's mantissa is a / b * 10 ^ shift.
        let shift = rscale as i32 + other.scale() as i32 - self.scale() as i32;
        if let (Repr::Small { m: a, .. }, Repr::Small { m: b, .. }) = (&self.0, &other.0)
            && let Some(p) = pow10_i128(shift.unsigned_abs())
        {
            let (n, d) = if shift >= 0 {
                ((*a as i128).checked_mul(p), Some(*b as i128))
            } else {
                (Some(*a as i128), (*b as i128).checked_mul(p))
            };
            if let (Some(n), Some(d)) = (n, d)
                && let Some(q) = div_round_i128(n, d)
            {
                return Ok(Numeric::new_i128(q, rscale));
            }
        }
        let (Some((mut n, _)), Some((mut d, _))) = (self.big_parts(), other.big_parts()) else {
            return Ok(Numeric::NAN);
        };
        if shift >= 0 {
            n *= pow10(shift as u32);
        } else {
            d *= pow10(-shift as u32);
        }
        Numeric::new_big(div_round(&n, &d), rscale)
    }

    /// Quotient without fraction (towards zero), and remainder with the sign of `self`. For finite values; 22012.
    fn div_rem(&self, other: &Numeric) -> Result<(Numeric, Numeric)> {
        if other.is_zero() {
            return Err(Error::division_by_zero());
        }
        let (Some((mut a, s)), Some((mut b, t))) = (self.big_parts(), other.big_parts()) else {
            return Ok((Numeric::NAN, Numeric::NAN));
        };
        let scale = s.max(t);
        a *= pow10((scale - s) as u32);
        b *= pow10((scale - t) as u32);
        let (q, r) = a.div_rem(&b);
        Ok((Numeric::new_big(q, 0)?, Numeric::new_big(r, scale)?))
    }

    /// `self % other`, with the sign of `self`. 22012 for zero.
    pub fn rem(&self, other: &Numeric) -> Result<Numeric> {
        if self.is_nan() || other.is_nan() {
            return Ok(Numeric::NAN);
        }
        if !self.is_finite() {
            return if other.is_zero() { Err(Error::division_by_zero()) } else { Ok(Numeric::NAN) };
        }
        if !other.is_finite() {
            return Ok(self.clone());
        }
        Ok(self.div_rem(other)?.1)
    }

    /// `div(self, other)`: the quotient without its fraction.
    pub fn div_trunc(&self, other: &Numeric) -> Result<Numeric> {
        if self.is_finite() && other.is_finite() { Ok(self.div_rem(other)?.0) } else { self.div(other) }
    }

    /// `round(self, digits)`: half away from zero; negative digits round before the point.
    pub fn round(&self, digits: i32) -> Numeric {
        self.rescale(digits, true)
    }

    /// `trunc(self, digits)`: towards zero.
    pub fn trunc(&self, digits: i32) -> Numeric {
        self.rescale(digits, false)
    }

    fn rescale(&self, digits: i32, half_up: bool) -> Numeric {
        let digits = digits.clamp(-(WEIGHT_DIGITS_MAX as i32) - 1, SCALE_MAX as i32);
        let shown = digits.max(0) as u16;
        let drop = self.scale() as i32 - digits;
        if let Repr::Small { m, .. } = &self.0 {
            if drop == 0 {
                return self.clone();
            }
            if drop > 19 {
                return Numeric::from_parts(0, shown);
            }
            if let Some(p) = pow10_i128(drop.unsigned_abs()) {
                let m = *m as i128;
                let scaled = if drop < 0 {
                    m.checked_mul(p)
                } else {
                    let q = if half_up { div_round_i128(m, p) } else { Some(m / p) };
                    if digits < 0 { q.and_then(|q| q.checked_mul(pow10_i128(-digits as u32)?)) } else { q }
                };
                if let Some(m) = scaled {
                    return Numeric::new_i128(m, shown);
                }
            }
        }
        let Some((m, _)) = self.big_parts() else { return self.clone() };
        let m = if drop <= 0 {
            m * pow10(-drop as u32)
        } else {
            // A divisor of more digits than the value has leaves nothing (but 0.5 may round up): bounded by WEIGHT.
            let p = pow10(drop as u32);
            let q = if half_up { div_round(&m, &p) } else { m / p };
            if digits < 0 { q * pow10(-digits as u32) } else { q }
        };
        match m.to_i64() {
            Some(m) => Numeric::from_parts(m, shown),
            None => Numeric(Repr::Big(Arc::new(Big { m, scale: shown }))),
        }
    }

    /// The largest integer not above.
    pub fn floor(&self) -> Numeric {
        let t = self.trunc(0);
        if self.signum() < 0 && t != *self { t.sub(&Numeric::ONE).unwrap_or(t) } else { t }
    }

    /// The smallest integer not below.
    pub fn ceil(&self) -> Numeric {
        let t = self.trunc(0);
        if self.signum() > 0 && t != *self { t.add(&Numeric::ONE).unwrap_or(t) } else { t }
    }

    /// The value without zeros at the end of its fraction.
    pub fn trim_scale(&self) -> Numeric {
        match self.big_parts() {
            None => self.clone(),
            Some((m, scale)) => {
                let (m, scale) = strip_zeros(m, scale, 0);
                Numeric::new_big(m, scale).expect("no more digits than before")
            }
        }
    }

    /// The same digits with the point moved left.
    pub(crate) fn shift_right(&self, digits: u16) -> Numeric {
        match &self.0 {
            Repr::Small { m, scale } => Numeric::from_parts(*m, scale.saturating_add(digits)),
            Repr::Big(b) => {
                Numeric(Repr::Big(Arc::new(Big { m: b.m.clone(), scale: (b.scale + digits).min(SCALE_MAX) })))
            }
            _ => self.clone(),
        }
    }

    /// Rounds to a declared precision and scale. 22003 when it does not fit.
    pub fn apply_typmod(&self, precision: u16, scale: i16) -> Result<Numeric> {
        let fail = |what: String| {
            Err(Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, "numeric field overflow").with_detail(what))
        };
        if self.is_nan() {
            return Ok(self.clone());
        }
        if !self.is_finite() {
            return fail(format!(
                "A field with precision {precision}, scale {scale} cannot hold an infinite value."
            ));
        }
        let rounded = self.round(scale as i32);
        let max_digits = precision as i64 - scale as i64;
        if !rounded.is_zero() && rounded.exponent() >= max_digits {
            let bound = if max_digits == 0 { "1".to_owned() } else { format!("10^{max_digits}") };
            return fail(format!(
                "A field with precision {precision}, scale {scale} must round to an absolute value less than {bound}."
            ));
        }
        Ok(rounded)
    }

    /// The power of ten of the first digit of a finite value that is not zero.
    fn exponent(&self) -> i64 {
        match &self.0 {
            Repr::Small { m: 0, .. } => 0,
            Repr::Small { m, scale } => m.unsigned_abs().ilog10() as i64 - *scale as i64,
            Repr::Big(b) => decimal_digits(&b.m) as i64 - 1 - b.scale as i64,
            _ => 0,
        }
    }

    /// The nearest integer (half away from zero); `None` when it is none, or does not fit.
    pub fn to_i64(&self) -> Option<i64> {
        match &self.0 {
            Repr::Small { m, scale: 0 } => Some(*m),
            Repr::Small { .. } | Repr::Big(_) => match self.round(0).0 {
                Repr::Small { m, .. } => Some(m),
                _ => None,
            },
            _ => None,
        }
    }

    /// The nearest double; infinite when out of range.
    pub fn to_f64(&self) -> f64 {
        match &self.0 {
            Repr::Small { m, scale: 0 } => *m as f64,
            // Both are exact doubles, so the one rounding of the quotient is the nearest.
            Repr::Small { m, scale } if m.unsigned_abs() < 1 << 53 && *scale <= 22 => {
                *m as f64 / 10f64.powi(*scale as i32)
            }
            Repr::NaN => f64::NAN,
            Repr::PosInf => f64::INFINITY,
            Repr::NegInf => f64::NEG_INFINITY,
            _ => self.to_string().parse().unwrap_or(f64::NAN),
        }
    }

    /// The numeric of a double's first 15 digits, as PostgreSQL converts.
    pub fn from_f64(v: f64) -> Numeric {
        Numeric::from_float(v, 14)
    }

    /// The numeric of a float's first 6 digits, as PostgreSQL converts.
    pub fn from_f32(v: f32) -> Numeric {
        Numeric::from_float(v as f64, 5)
    }

    fn from_float(v: f64, digits: usize) -> Numeric {
        if v.is_nan() {
            return Numeric::NAN;
        }
        if v.is_infinite() {
            return if v > 0.0 { Numeric::INFINITY } else { Numeric::NEG_INFINITY };
        }
        let text = format!("{v:.digits$e}");
        let (m, e) = text.split_once('e').expect("the exponential form has an exponent");
        let m = if m.contains('.') { m.trim_end_matches('0').trim_end_matches('.') } else { m };
        Numeric::parse(&format!("{m}e{e}")).expect("a finite double in exponential form is a numeric")
    }

    /// Reads PostgreSQL's text form. 22P02, or 22003 for too many digits.
    pub fn parse(text: &str) -> Result<Numeric> {
        let invalid = || Error::invalid_input("numeric", text);
        let t = text.trim_matches(|c: char| c.is_ascii_whitespace() || c == '\x0b');
        let (negative, rest) = match t.as_bytes().first() {
            Some(b'-') => (true, &t[1..]),
            Some(b'+') => (false, &t[1..]),
            _ => (false, t),
        };
        if rest.eq_ignore_ascii_case("nan") && rest.len() == t.len() {
            return Ok(Numeric::NAN);
        }
        if rest.eq_ignore_ascii_case("infinity") || rest.eq_ignore_ascii_case("inf") {
            return Ok(if negative { Numeric::NEG_INFINITY } else { Numeric::INFINITY });
        }
        let (number, exponent) = match rest.find(['e', 'E']) {
            None => (rest, 0i64),
            Some(i) => {
                let digits = rest[i + 1..].strip_prefix(['+', '-']).unwrap_or(&rest[i + 1..]);
                if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
                    return Err(invalid());
                }
                let e: i64 = rest[i + 1..].parse().map_err(|_| overflow())?;
                (&rest[..i], e)
            }
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty()
            || !whole.bytes().chain(fraction.bytes()).all(|b| b.is_ascii_digit())
        {
            return Err(invalid());
        }
        if exponent.abs() > i32::MAX as i64 / 2 {
            return Err(overflow());
        }
        let scale = fraction.len() as i64 - exponent;
        let whole = whole.trim_start_matches('0');
        let digits = whole.len() + fraction.len();
        let (shown, pad) = if scale < 0 { (0, -scale) } else { (scale, 0) };
        if digits <= 18 && shown <= SCALE_MAX as i64 && pad == 0 {
            let m = whole.bytes().chain(fraction.bytes()).fold(0i64, |a, d| a * 10 + (d - b'0') as i64);
            return Ok(Numeric::from_parts(if negative { -m } else { m }, shown as u16));
        }
        if digits as i64 + pad - shown > WEIGHT_DIGITS_MAX {
            // Leading zeros of the fraction do not count.
            let zero = whole.is_empty() && fraction.bytes().all(|b| b == b'0');
            if zero {
                return Ok(Numeric::from_parts(0, 0));
            }
            return Err(overflow());
        }
        let mut text = String::with_capacity(digits + 1);
        text.push_str(whole);
        text.push_str(fraction);
        // What is beyond the largest scale is rounded away.
        let excess = (shown - SCALE_MAX as i64).max(0);
        if excess > text.len() as i64 {
            return Ok(Numeric::from_parts(0, SCALE_MAX));
        }
        let mut m: BigInt = text.parse().map_err(|_| invalid())?;
        if pad > 0 {
            m *= pow10(pad as u32);
        }
        if excess > 0 {
            m = div_round(&m, &pow10(excess as u32));
        }
        Numeric::new_big(if negative { -m } else { m }, shown.min(SCALE_MAX as i64) as u16)
    }

    /// Appends the text form.
    pub fn write(&self, out: &mut Vec<u8>) {
        match &self.0 {
            Repr::Small { m, scale } => {
                let mut buf = [0u8; 20];
                let mut at = buf.len();
                let mut v = m.unsigned_abs();
                loop {
                    at -= 1;
                    buf[at] = b'0' + (v % 10) as u8;
                    v /= 10;
                    if v == 0 {
                        break;
                    }
                }
                write_digits(*m < 0, &buf[at..], *scale as usize, out);
            }
            Repr::Big(b) => {
                write_digits(b.m.is_negative(), b.m.magnitude().to_string().as_bytes(), b.scale as usize, out)
            }
            Repr::NaN => out.extend_from_slice(b"NaN"),
            Repr::PosInf => out.extend_from_slice(b"Infinity"),
            Repr::NegInf => out.extend_from_slice(b"-Infinity"),
        }
    }

    /// Sign, exponent of the first digit, and the digits without zeros at the end; `None` unless finite and not zero.
    pub(crate) fn scientific(&self) -> Option<(bool, i64, Vec<u8>)> {
        let (negative, mut digits, scale) = match &self.0 {
            Repr::Small { m: 0, .. } => return None,
            Repr::Small { m, scale } => (*m < 0, m.unsigned_abs().to_string().into_bytes(), *scale),
            Repr::Big(b) => (b.m.is_negative(), b.m.magnitude().to_string().into_bytes(), b.scale),
            _ => return None,
        };
        let exponent = digits.len() as i64 - 1 - scale as i64;
        while digits.last() == Some(&b'0') {
            digits.pop();
        }
        Some((negative, exponent, digits))
    }

    /// The inverse of [`Numeric::scientific`]; the digits are ASCII. Bounded, and checked.
    pub(crate) fn from_scientific(negative: bool, exponent: i64, digits: &[u8]) -> Result<Numeric> {
        let text = std::str::from_utf8(digits).map_err(|_| Error::corrupted("numeric digits"))?;
        let e = exponent - (digits.len() as i64 - 1);
        Numeric::parse(&format!("{}{text}e{e}", if negative { "-" } else { "" }))
    }
}

fn write_digits(negative: bool, digits: &[u8], scale: usize, out: &mut Vec<u8>) {
    if negative {
        out.push(b'-');
    }
    if scale == 0 {
        out.extend_from_slice(digits);
    } else if digits.len() > scale {
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        out.extend_from_slice(whole);
        out.push(b'.');
        out.extend_from_slice(fraction);
    } else {
        out.extend_from_slice(b"0.");
        out.resize(out.len() + scale - digits.len(), b'0');
        out.extend_from_slice(digits);
    }
}

fn decimal_digits(m: &BigInt) -> usize {
    m.magnitude().to_string().len()
}

fn strip_zeros(mut m: BigInt, mut scale: u16, least: u16) -> (BigInt, u16) {
    if m.is_zero() {
        return (m, least);
    }
    let ten = BigInt::from(10);
    while scale > least {
        let (q, r) = m.div_rem(&ten);
        if !r.is_zero() {
            break;
        }
        m = q;
        scale -= 1;
    }
    (m, scale)
}

impl fmt::Display for Numeric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Vec::new();
        self.write(&mut out);
        f.write_str(&String::from_utf8_lossy(&out))
    }
}

impl fmt::Debug for Numeric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Numeric {
    type Err = Error;
    fn from_str(s: &str) -> Result<Numeric> {
        Numeric::parse(s)
    }
}

impl From<i64> for Numeric {
    fn from(v: i64) -> Numeric {
        Numeric::from_parts(v, 0)
    }
}

impl PartialEq for Numeric {
    fn eq(&self, other: &Numeric) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Numeric {}

impl PartialOrd for Numeric {
    fn partial_cmp(&self, other: &Numeric) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// -Infinity, numbers, Infinity, NaN.
impl Ord for Numeric {
    fn cmp(&self, other: &Numeric) -> Ordering {
        if let (Repr::Small { m: a, scale: s }, Repr::Small { m: b, scale: t }) = (&self.0, &other.0) {
            if s == t {
                return a.cmp(b);
            }
            let diff = s.abs_diff(*t) as u32;
            if diff <= 18 {
                let p = 10i128.pow(diff);
                let (a, b) = (*a as i128, *b as i128);
                return if s < t { (a * p).cmp(&b) } else { a.cmp(&(b * p)) };
            }
        }
        let class = |n: &Numeric| match n.0 {
            Repr::NegInf => 0,
            Repr::Small { .. } | Repr::Big(_) => 1,
            Repr::PosInf => 2,
            Repr::NaN => 3,
        };
        match (self.big_parts(), other.big_parts()) {
            (Some((mut a, s)), Some((mut b, t))) => {
                let scale = s.max(t);
                a *= pow10((scale - s) as u32);
                b *= pow10((scale - t) as u32);
                a.cmp(&b)
            }
            _ => class(self).cmp(&class(other)),
        }
    }
}

impl Hash for Numeric {
    fn hash<H: Hasher>(&self, h: &mut H) {
        match &self.0 {
            Repr::Small { m: 0, .. } => h.write_i64(0),
            Repr::Small { m, scale } => {
                let (mut m, mut exponent) = (*m, -(*scale as i32));
                while m % 10 == 0 {
                    m /= 10;
                    exponent += 1;
                }
                h.write_i64(m);
                h.write_i32(exponent);
            }
            Repr::Big(b) => {
                let digits = b.m.magnitude().to_string();
                let kept = digits.trim_end_matches('0');
                let exponent = (digits.len() - kept.len()) as i32 - b.scale as i32;
                let negative = b.m.is_negative();
                let text = if negative { format!("-{kept}") } else { kept.to_owned() };
                match text.parse::<i64>() {
                    Ok(m) => h.write_i64(m),
                    Err(_) => h.write(text.as_bytes()),
                }
                h.write_i32(exponent);
            }
            Repr::NaN => h.write_u8(1),
            Repr::PosInf => h.write_u8(2),
            Repr::NegInf => h.write_u8(3),
        }
    }
}
