//! A simulated disk and clock with seeds.
