//! Resource quantities: `128Mi`, `250m`.

use serde_json::Value;

use crate::domain::text::escape;

/// A quantity as stored, which is its canonical form.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::String(text) => escape(text).into_owned(),
        Value::Number(number) => number.to_string(),
        _ => "0".to_owned(),
    }
}

/// A quantity in units of 10^-`shift`, rounded up; `Quantity.Value` and `Quantity.MilliValue` of
/// k8s.io/apimachinery. What is no quantity is 0.
pub(super) fn amount(value: &Value, shift: i32) -> i64 {
    let text = show(value);
    let digits = text.trim_end_matches(|unit: char| unit.is_ascii_alphabetic());
    let (binary, decimal) = match &text[digits.len()..] {
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => (0, 0),
    };
    let number: f64 = digits.parse().unwrap_or_default();
    let exponent = decimal + shift;
    // Powers of ten up to 22 are exact, their inverses are not: dividing keeps 1000m at 1.
    let scaled = if exponent < 0 { number / 10f64.powi(-exponent) } else { number * 10f64.powi(exponent) };
    (scaled * 2f64.powi(binary)).ceil() as i64
}
