//! Flags that bound what callers can make rollbackd hold and do. The memory limit of the manifest follows from their
//! defaults.

use clap::Args;

/// Smallest budget for unfinished headers: two of the largest.
const SMALLEST_HEADER_BUDGET: usize = 64 * 1024;

/// Limits of what callers use.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitArgs {
    /// Open connections; at the limit, the address with the most gives up its oldest idle one
    #[arg(long, env = "ROLLBACKD_MAX_CONNECTIONS", value_name = "COUNT", default_value_t = 1000, value_parser = count, allow_negative_numbers = true)]
    pub max_connections: usize,

    /// Open connections of one address, or /64 of IPv6, which is not a --trusted-proxy
    #[arg(long, env = "ROLLBACKD_MAX_CONNECTIONS_PER_ADDRESS", value_name = "COUNT", default_value_t = 100, value_parser = count, allow_negative_numbers = true)]
    pub max_connections_per_address: usize,

    /// Bytes of request headers that have not arrived in whole, over all connections, such as 4Mi
    #[arg(long, env = "ROLLBACKD_MAX_UNFINISHED_HEADER_BYTES", value_name = "BYTES", default_value = "4Mi", value_parser = header_budget, allow_negative_numbers = true)]
    pub max_unfinished_header_bytes: usize,

    /// Open event streams
    #[arg(long, env = "ROLLBACKD_MAX_STREAMS", value_name = "COUNT", default_value_t = 500, value_parser = count, allow_negative_numbers = true)]
    pub max_streams: usize,

    /// Open event streams of one user: the one whose rights decide
    #[arg(long, env = "ROLLBACKD_MAX_STREAMS_PER_USER", value_name = "COUNT", default_value_t = 50, value_parser = count, allow_negative_numbers = true)]
    pub max_streams_per_user: usize,

    /// Reviews a second that the API server is asked because of tokens from one address, or /64 of IPv6, that were not
    /// valid before; ten times as many at once
    #[arg(long, env = "ROLLBACKD_MAX_REVIEWS_PER_ADDRESS", value_name = "COUNT", default_value_t = 20, value_parser = rate, allow_negative_numbers = true)]
    pub max_reviews_per_address: u32,

    /// Reviews a second that the API server is asked because of one user; sixty times as many at once
    #[arg(long, env = "ROLLBACKD_MAX_REVIEWS_PER_USER", value_name = "COUNT", default_value_t = 20, value_parser = rate, allow_negative_numbers = true)]
    pub max_reviews_per_user: u32,
}

impl Default for LimitArgs {
    /// What the flags are where none is given.
    fn default() -> Self {
        Self {
            max_connections: 1000,
            max_connections_per_address: 100,
            max_unfinished_header_bytes: 4 * 1024 * 1024,
            max_streams: 500,
            max_streams_per_user: 50,
            max_reviews_per_address: 20,
            max_reviews_per_user: 20,
        }
    }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("expected a whole number from 1".into()),
    }
}

/// At most a million a second: a share's unit is a part of a second.
fn rate(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(rate) if (1..=1_000_000).contains(&rate) => Ok(rate),
        _ => Err("expected a whole number from 1 to 1000000".into()),
    }
}

fn header_budget(text: &str) -> Result<usize, String> {
    match bytes(text) {
        Some(bytes) if bytes >= SMALLEST_HEADER_BUDGET => Ok(bytes),
        _ => Err("expected a number of bytes from 64Ki, such as 4Mi".into()),
    }
}

/// A whole number of bytes, or of Ki or Mi of them, as Kubernetes writes quantities.
fn bytes(text: &str) -> Option<usize> {
    let (number, unit) = match (text.strip_suffix("Ki"), text.strip_suffix("Mi")) {
        (Some(number), _) => (number, 1024),
        (_, Some(number)) => (number, 1024 * 1024),
        (None, None) => (text, 1),
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        limits: LimitArgs,
    }

    #[test]
    fn defaults_are_those_of_the_flags() {
        let parsed = Flags::try_parse_from(["rollbackd"]).unwrap().limits;
        assert_eq!(format!("{parsed:?}"), format!("{:?}", LimitArgs::default()));
    }

    #[test]
    fn bytes_are_written_as_quantities() {
        assert_eq!(["65536", "64Ki", "4Mi"].map(bytes), [Some(65536), Some(65536), Some(4_194_304)]);
        assert_eq!(["", "4MB", "4 Mi", "-1", "1.5Mi", "18446744073709551615Mi"].map(bytes), [None; 6]);
    }
}
