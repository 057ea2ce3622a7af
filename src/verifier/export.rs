//! Reads an export: one entry a line, `{"sequence", "previous", "hash", "entry"}`, of which `entry` is the
//! entry's text.

use std::io::BufRead;

use super::{
    Checks, Report, VerifyError,
    chain::{Chain, Link},
};

/// Verifies what `rollbackd audit export` printed.
///
/// # Errors
/// When it can't be read.
pub fn verify_export(mut lines: impl BufRead, checks: &Checks) -> Result<Report, VerifyError> {
    let mut chain = Chain::new(checks);
    let mut line = Vec::new();
    for number in 1_u64.. {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            break;
        }
        match serde_json::from_slice::<Link>(&line) {
            Ok(link) => drop(chain.take(link)),
            Err(_) => chain.find(None, format!("line {number} is not one of an export")),
        }
    }
    Ok(chain.end())
}
