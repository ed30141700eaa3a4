//! Numbers by chance: fast, seeded, and the same everywhere.

/// A generator of random numbers (SplitMix64: Steele, Lea, Flood 2014). Not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Any number.
    #[inline]
    pub fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number below `bound`, which is not 0. The error of the multiplication is below bound / 2⁶⁴.
    #[inline]
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.any()) * u128::from(bound)) >> 64) as u64
    }

    /// A number in 0..1.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.any() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }
}

/// Scatters a number over all 64 bits, one to one.
#[inline]
pub fn mix(value: u64) -> u64 {
    let z = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Numbers from 1 to `n`, `k` as often as 1 / kˢ. Exact for any `n` without a table: rejection-inversion (Hörmann and
/// Derflinger 1996, "Rejection-inversion to generate variates from monotone discrete distributions").
#[derive(Clone, Debug)]
pub struct Zipf {
    n: u64,
    exponent: f64,
    integral_first: f64,
    integral_last: f64,
    squeeze: f64,
}

impl Zipf {
    /// The distribution over 1..=n with that exponent; both above 0.
    pub fn new(n: u64, exponent: f64) -> Self {
        assert!(n > 0 && exponent > 0.0, "zipf needs numbers and a positive exponent");
        Self {
            n,
            exponent,
            integral_first: integral(1.5, exponent) - 1.0,
            integral_last: integral(n as f64 + 0.5, exponent),
            squeeze: 2.0 - integral_inverse(integral(2.5, exponent) - density(2.0, exponent), exponent),
        }
    }

    /// The next number.
    pub fn draw(&self, random: &mut Random) -> u64 {
        loop {
            let u = self.integral_last + random.unit() * (self.integral_first - self.integral_last);
            let x = integral_inverse(u, self.exponent);
            let k = (x.round().max(1.0) as u64).min(self.n);
            let near = k as f64 - x <= self.squeeze;
            if near || u >= integral(k as f64 + 0.5, self.exponent) - density(k as f64, self.exponent) {
                return k;
            }
        }
    }
}

fn density(x: f64, exponent: f64) -> f64 {
    (-exponent * x.ln()).exp()
}

/// ∫ x^-s, as (x^(1-s) - 1) / (1 - s), which is ln x in the limit s = 1.
fn integral(x: f64, exponent: f64) -> f64 {
    let log = x.ln();
    expm1_over((1.0 - exponent) * log) * log
}

fn integral_inverse(x: f64, exponent: f64) -> f64 {
    let t = (x * (1.0 - exponent)).max(-1.0);
    (ln1p_over(t) * x).exp()
}

fn expm1_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.exp_m1() / x } else { 1.0 + x / 2.0 }
}

fn ln1p_over(x: f64) -> f64 {
    if x.abs() > 1e-8 { x.ln_1p() / x } else { 1.0 - x / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws, and compares each number's share with 1/kˢ within five standard deviations.
    fn draws_fit(n: u64, exponent: f64) {
        const DRAWS: u32 = 400_000;
        let (zipf, mut random) = (Zipf::new(n, exponent), Random::new(7));
        let mut counts = vec![0u32; n as usize + 1];
        for _ in 0..DRAWS {
            counts[zipf.draw(&mut random) as usize] += 1;
        }
        assert_eq!(counts[0], 0);
        let total: f64 = (1..=n).map(|k| (k as f64).powf(-exponent)).sum();
        for k in 1..=n {
            let expected = f64::from(DRAWS) * (k as f64).powf(-exponent) / total;
            let off = (f64::from(counts[k as usize]) - expected).abs();
            assert!(off < 5.0 * expected.sqrt() + 1.0, "n {n}, s {exponent}, k {k}: {off} off {expected}");
        }
    }

    #[test]
    fn zipf_draws_each_number_as_often_as_its_rank_says() {
        for exponent in [0.5, 0.99, 1.0, 1.5, 3.0] {
            draws_fit(1, exponent);
            draws_fit(2, exponent);
            draws_fit(100, exponent);
        }
    }

    #[test]
    fn below_is_even_and_below() {
        let (mut random, mut counts) = (Random::new(1), [0u32; 10]);
        for _ in 0..100_000 {
            counts[random.below(10) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert_eq!(random.below(1), 0);
    }
}
