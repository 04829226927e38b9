//! Reads passwords from the password file, as libpq does.
//!
//! Format: PostgreSQL manual, "The Password File": lines of `host:port:database:user:password`. `*` matches any value;
//! a backslash escapes a colon or a backslash. The file is read at each connection, so a password can change without a
//! restart.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Returns the password for a connection to this host, port, database and user, or `None` if there is no file or no matching line. A file that other users
/// can access is ignored, with a warning.
pub fn look_up([host, port, name, user]: &[String; 4]) -> Option<String> {
    let path = path(std::env::var_os("PGPASSFILE"), std::env::var_os("HOME"))?;
    let mode = fs::metadata(&path).ok()?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(file = %path.display(), "the password file is ignored: other users can access it; chmod 600");
        return None;
    }
    let text = fs::read_to_string(&path).ok()?;
    // As in libpq, `localhost` also stands for the default socket directory.
    let host = if host == "/var/run/postgresql" { "localhost" } else { host };
    find(&text, &[host, port, name, user])
}

fn path(given: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let given = given.filter(|path| !path.is_empty()).map(PathBuf::from);
    given.or_else(|| Some(PathBuf::from(home?).join(".pgpass")))
}

/// Returns the password of the first line that matches host, port, database and user.
fn find(text: &str, wanted: &[&str; 4]) -> Option<String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(fields).find_map(|mut fields| {
        let password = (fields.len() > 4).then(|| fields.remove(4))?;
        let fits = fields.iter().zip(wanted).all(|(field, wanted)| field == "*" || field == wanted);
        fits.then_some(password)
    })
}

fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        let last = fields.last_mut().expect("the first field is there from the start");
        match character {
            ':' => fields.push(String::new()),
            '\\' => last.extend(characters.next()),
            other => last.push(other),
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_fits_is_taken() {
        let file = "# a comment\nhere:5432:shop:other:no\nhere:*:shop:stampede:a\\:b\\\\c\n*:*:*:*:any\n";
        let find = |host, port| find(file, &[host, port, "shop", "stampede"]);
        assert_eq!(find("here", "1").as_deref(), Some("a:b\\c"));
        assert_eq!(find("there", "1").as_deref(), Some("any"));
        assert_eq!(super::find("a:b:c", &["a", "b", "c", "d"]), None);
    }

    #[test]
    fn the_file_can_be_named() {
        let path = |given: &str, home: &str| path(Some(given.into()), Some(home.into()));
        assert_eq!(path("/x", "/home/me"), Some("/x".into()));
        assert_eq!(path("", "/home/me"), Some("/home/me/.pgpass".into()));
    }
}
