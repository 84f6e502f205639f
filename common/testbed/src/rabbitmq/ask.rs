//! One question to the management API: a connection, a request, an answer. HTTP/1.0, so the end of the connection is the end of
//! the answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);
/// `guest:guest`.
const LOGIN: &str = "Z3Vlc3Q6Z3Vlc3Q=";

/// What the broker answers: null when it has nothing to say, `None` when it knows no such thing (404).
pub(super) fn ask(address: SocketAddr, method: &str, path: &str, body: &Value) -> Result<Option<Value>> {
    let said = || format!("{method} {path}");
    let answer = exchange(address, &request(method, path, body)).with_context(said)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(said)?;
    let code = head.split(' ').nth(1).unwrap_or_default();
    match code {
        "404" => Ok(None),
        _ if !code.starts_with('2') => bail!("{method} {path}: {} {body}", head.lines().next().unwrap_or_default()),
        _ if body.is_empty() => Ok(Some(Value::Null)),
        _ => Ok(Some(serde_json::from_str(body).with_context(said)?)),
    }
}

fn request(method: &str, path: &str, body: &Value) -> String {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    format!(
        "{method} {path} HTTP/1.0\r\nHost: localhost\r\nAuthorization: Basic {LOGIN}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn exchange(address: SocketAddr, request: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A path of names, each of which may hold any character.
pub(super) fn path(names: &[&str]) -> String {
    let mut path = "/api".to_owned();
    for name in names {
        path.push('/');
        for byte in name.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => path.push(char::from(byte)),
                _ => path.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_one_part_of_the_path_whatever_it_holds() {
        assert_eq!(path(&["queues", "/", "a/../b%ü"]), "/api/queues/%2F/a%2F%2E%2E%2Fb%25%C3%BC");
    }

    #[test]
    fn a_request_says_how_long_its_body_is() {
        let with = request("PUT", "/api/x", &serde_json::json!({"a": "ü"}));
        assert!(with.contains("Content-Length: 10\r\n") && with.ends_with("\r\n\r\n{\"a\":\"ü\"}"), "{with}");
        assert!(request("GET", "/api/x", &Value::Null).ends_with("Content-Length: 0\r\n\r\n"));
    }
}
