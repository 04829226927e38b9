//! The query string of a request: parameters, each with one spelling.

use crate::http::problem::Problem;

/// Returns the value of a parameter, if it is given. A parameter that is given twice is refused with `problem`.
pub fn value<'a>(query: &'a str, name: &str, problem: Problem) -> Result<Option<&'a [u8]>, Problem> {
    let mut values = parameters(query).filter(|(given, _)| *given == name.as_bytes()).map(|(_, value)| value);
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(problem),
    }
}

/// Returns the value of a parameter that is a whole number, if it is given. Any other value is refused with `problem`.
pub fn number_value(query: &str, name: &str, problem: Problem) -> Result<Option<u32>, Problem> {
    let parse = |value| number(value).and_then(|value| u32::try_from(value).ok()).ok_or(problem);
    value(query, name, problem)?.map(parse).transpose()
}

/// Returns the parameters of a query, each with its name and its value.
pub fn parameters(query: &str) -> impl Iterator<Item = (&[u8], &[u8])> {
    query.as_bytes().split(|&byte| byte == b'&').map(|pair| {
        let mark = pair.iter().position(|&byte| byte == b'=').unwrap_or(pair.len());
        (&pair[..mark], pair.get(mark + 1..).unwrap_or_default())
    })
}

/// Decodes the unreserved characters of a query: letters, digits, `-`, `.`, `_` and `~` (RFC 3986 §6.2.2.2). Other
/// encoded characters stay encoded, so that they cannot separate parameters.
pub fn decode_unreserved(query: &str) -> String {
    let mut parts = query.split('%');
    let mut decoded = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let byte = part.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok()).map(char::from);
        match byte.filter(|byte| byte.is_ascii_alphanumeric() || "-._~".contains(*byte)) {
            Some(byte) => decoded.extend([byte].iter().copied().chain(part[2..].chars())),
            None => decoded.extend(['%'].into_iter().chain(part.chars())),
        }
    }
    decoded
}

/// Returns a whole number in its only spelling: decimal digits without a sign or a leading zero.
pub fn number(text: &[u8]) -> Option<u64> {
    let add = |number: u64, byte: &u8| {
        let digit = byte.is_ascii_digit().then(|| byte - b'0')?;
        number.checked_mul(10)?.checked_add(digit.into())
    };
    if matches!(text, b"0" | [b'1'..=b'9', ..]) { text.iter().try_fold(0, add) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unreserved_characters_are_decoded() {
        for (query, decoded) in [
            ("a=b", "a=b"),
            ("%75ser%5fid=%37&x=%7E%2D%2e", "user_id=7&x=~-."),
            ("a%3Db%26c=%20%25%7b", "a%3Db%26c=%20%25%7b"),
            ("%", "%"),
            ("%4", "%4"),
            ("%zz%+1%41", "%zz%+1A"),
            ("%e4%", "%e4%"),
        ] {
            assert_eq!(decode_unreserved(query), decoded);
        }
    }
}
