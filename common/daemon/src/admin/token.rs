//! The bearer token of the admin endpoint. Promises: compared in constant time, never shown; a file is read again for each
//! request, so that a rotated token counts at once.

use std::fmt;
use std::path::PathBuf;

use subtle::ConstantTimeEq;

/// What a caller must know to change something.
#[derive(Clone)]
pub enum Token {
    /// The token itself.
    Value(String),
    /// A file that holds it.
    File(PathBuf),
}

impl Token {
    /// True if the value of an `Authorization` header carries this token. An empty or unreadable token lets nobody in.
    pub(super) fn admits(&self, authorization: &str) -> bool {
        let Some((scheme, given)) = authorization.split_once(' ') else { return false };
        let known = match self {
            Self::Value(value) => value.clone(),
            Self::File(path) => std::fs::read_to_string(path).unwrap_or_default(),
        };
        let known = known.trim();
        scheme.eq_ignore_ascii_case("bearer") && !known.is_empty() && bool::from(known.as_bytes().ct_eq(given.trim().as_bytes()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(<hidden>)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_itself_admits() {
        let file = tempfile::NamedTempFile::new().expect("file");
        std::fs::write(file.path(), "canary\n").expect("file");
        for token in [Token::Value("canary".to_owned()), Token::File(file.path().to_owned())] {
            assert!(token.admits("Bearer canary") && token.admits("bearer canary"));
            for wrong in ["", "canary", "Bearer", "Bearer ", "Bearer canar", "Bearer canaryy", "Basic canary"] {
                assert!(!token.admits(wrong), "{wrong}");
            }
            assert!(!format!("{token:?}").contains("canary"));
        }
        for nobody in [Token::Value(" ".to_owned()), Token::File("/nowhere".into())] {
            assert!(!nobody.admits("Bearer ") && !nobody.admits("Bearer  "));
        }
    }
}
