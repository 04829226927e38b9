//! The time of the server, as the header `Date` of its responses tells it.

use std::time::UNIX_EPOCH;

/// The latest `Date` that has arrived. Parses each text once.
#[derive(Debug, Default)]
pub struct ServerDate {
    second: u64,
    text: Vec<u8>,
}

impl ServerDate {
    /// Returns the latest `Date`, in seconds since the Unix epoch, or 0 if none has arrived.
    pub fn second(&self) -> u64 {
        self.second
    }

    /// Returns the second of the `Date` of a response, or the latest one if it cannot be read.
    pub fn read(&mut self, date: &[u8]) -> u64 {
        if self.text == date {
            return self.second;
        }
        let parsed = std::str::from_utf8(date).ok().and_then(|text| httpdate::parse_http_date(text).ok());
        let Some(second) = parsed.and_then(|time| time.duration_since(UNIX_EPOCH).ok()) else { return self.second };
        let second = second.as_secs();
        // Responses of several shards can arrive in another order than they were written in.
        if second > self.second {
            self.second = second;
            self.text.clear();
            self.text.extend_from_slice(date);
        }
        second
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_date_is_kept() {
        let mut date = ServerDate::default();
        assert_eq!((date.read(b""), date.second()), (0, 0));
        assert_eq!(date.read(b"Thu, 01 Jan 1970 00:01:40 GMT"), 100);
        assert_eq!(date.read(b"Thu, 01 Jan 1970 00:01:40 GMT"), 100);
        assert_eq!((date.read(b"Thu, 01 Jan 1970 00:01:39 GMT"), date.second()), (99, 100));
        assert_eq!((date.read(b"today"), date.second()), (100, 100));
        assert_eq!((date.read(b"Thu, 01 Jan 1970 00:01:41 GMT"), date.second()), (101, 101));
    }
}
