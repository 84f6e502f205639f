//! Makes a checked request of the flags, and refuses by name what this version does not do.
//!
//! Promises: a flag is used or refused, never ignored. Pure: the present is an argument. Never: connect.

use tapedeck_common::{Position, Timestamp};
use tapedeck_daemon::units::{ByteRate, Rate, moment};
use tapedeck_daemon::{Exit, Failure};

use crate::cli::{How, Which};
use crate::pacer::Limits;
use crate::select::Selection;
use crate::target::Target;

/// A wrong or unserved word on the command line.
pub fn usage(what: impl Into<String>) -> Failure {
    Failure::new(Exit::Usage, what.into())
}

fn not_yet(what: &str, instead: &str) -> Failure {
    usage(format!("{what} is not in this version{instead}"))
}

/// Refuses a command of a later version.
pub fn later(command: &str) -> Failure {
    let instead = match command {
        "pause" | "cancel" => "; stop the process with TERM, the same --job resumes it",
        "resume" => "; run the same --job again",
        "rate" => "; stop the process and run the same --job with another --rate",
        "find" => "; `replayer cat --key` finds events of one key",
        _ => "",
    };
    not_yet(&format!("`replayer {command}`"), instead)
}

/// The events that are asked for.
pub fn selection(which: &Which, now: Timestamp) -> Result<Selection, Failure> {
    if which.where_.is_some() {
        return Err(not_yet("--where", "; select by --topic, --from, --until, --partition, --offsets and --key"));
    }
    if which.latest_per_key {
        return Err(not_yet("--latest-per-key", ""));
    }
    let time = |flag: &str, text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => moment(text, now).map(Some).map_err(|error| usage(format!("{flag}: {error}"))),
    };
    let selection = Selection {
        topics: which.topics.iter().cloned().collect(),
        from: time("--from", &which.from)?,
        until: time("--until", &which.until)?,
        partitions: which.partitions.iter().copied().collect(),
        offsets: which.offsets.as_deref().map(offsets).transpose()?,
        key: which.key.clone(),
    };
    if let (Some(from), Some(until)) = (selection.from, selection.until)
        && from >= until
    {
        return Err(usage(format!("--from {from} is not before --until {until}: there is nothing between them")));
    }
    if let Some(below) = selection.partitions.iter().find(|partition| **partition < 0) {
        return Err(usage(format!("--partition {below}: partitions count from 0")));
    }
    selection.key_bytes().map_err(|error| usage(format!("--key: after base64: comes no base64 ({error})")))?;
    Ok(selection)
}

fn offsets(text: &str) -> Result<(Position, Position), Failure> {
    let read = || {
        let (from, until) = text.split_once("..")?;
        let (from, until) = (from.parse().ok()?, until.parse().ok()?);
        let span = (Position::from_i64(from)?, Position::from_i64(until)?);
        (span.0 < span.1).then_some(span)
    };
    read().ok_or_else(|| usage(format!("--offsets: `{text}` is no range: write A..B with A below B; B itself is left out")))
}

/// How fast.
pub fn limits(how: &How) -> Result<Limits, Failure> {
    let events = how.rate.as_deref().map(|text| text.parse::<Rate>().map_err(|error| usage(format!("--rate: {error}"))));
    let bytes = how.bytes.as_deref().map(|text| text.parse::<ByteRate>().map_err(|error| usage(format!("--bytes: {error}"))));
    Ok(Limits { events: events.transpose()?.map(Rate::per_second), bytes: bytes.transpose()?.map(ByteRate::per_second) })
}

/// Refuses what a later version does with targets, order and pace.
pub fn refuse_later(how: &How) -> Result<(), Failure> {
    match how.guarantee.as_deref() {
        None | Some("at-least-once") => {}
        Some(guarantee @ ("exactly-once" | "idempotent")) => {
            let instead =
                "; at-least-once is: the plan states how many events may arrive twice, and each carries x-replay-event-id";
            return Err(not_yet(&format!("--guarantee {guarantee}"), instead));
        }
        Some(other) => {
            return Err(usage(format!("--guarantee: `{other}` is no guarantee; at-least-once is the only one in this version")));
        }
    }
    if how.to_original || how.reason.is_some() {
        return Err(not_yet("--to-original (with --reason)", "; without it events go to the side topic {topic}.replay.{job}"));
    }
    if let Some(pace) = &how.pace {
        return Err(not_yet(&format!("--pace {pace}"), "; --rate and --bytes are"));
    }
    let others = [
        ("--speed", &how.speed),
        ("--finish-by", &how.finish_by),
        ("--order", &how.order),
        ("--headers", &how.headers),
        ("--timestamps", &how.timestamps),
        ("--protect-group", &how.protect_group),
        ("--canary", &how.canary),
    ];
    others.iter().find(|(_, value)| value.is_some()).map_or(Ok(()), |(flag, _)| Err(not_yet(flag, "")))
}

/// Where to: the flag, or what is configured.
pub fn target(how: &How, configured: Option<&Target>) -> Result<Target, Failure> {
    refuse_later(how)?;
    match &how.to {
        Some(address) => Target::parse(address).map_err(|error| usage(error.to_string())),
        None => configured.cloned().ok_or_else(|| {
            usage("where to? --to kafka://broker:9092[/topic], or target.kafka.brokers in the file of -c; --to stdout: prints")
        }),
    }
}

/// The flags that make up a request, as one line: what a resumed job compares with.
pub fn request_text(which: &Which, target: &Target) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut topics = which.topics.clone();
    topics.sort();
    words.extend(topics.into_iter().map(|topic| format!("--topic {topic}")));
    let mut partitions = which.partitions.clone();
    partitions.sort_unstable();
    words.extend(partitions.into_iter().map(|partition| format!("--partition {partition}")));
    for (flag, value) in
        [("--from", &which.from), ("--until", &which.until), ("--offsets", &which.offsets), ("--key", &which.key)]
    {
        words.extend(value.as_ref().map(|value| format!("{flag} {value}")));
    }
    words.push(format!("--to {}", target.describe()));
    words.join(" ")
}

/// True if no event was chosen on the command line.
pub fn is_empty(which: &Which) -> bool {
    which.topics.is_empty()
        && which.from.is_none()
        && which.until.is_none()
        && which.partitions.is_empty()
        && which.offsets.is_none()
        && which.key.is_none()
}

/// A job's name: part of topic names and object keys.
pub fn job_name(name: &str) -> Result<&str, Failure> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || name.len() > 80 || name.starts_with('.') || !name.bytes().all(plain) {
        return Err(usage(format!(
            "--job: `{name}` is no name of a job: up to 80 letters, digits, dots, dashes and underscores"
        )));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_micros(1_795_084_200_000_000);

    #[test]
    fn flags_become_a_half_open_selection() {
        let which = Which {
            topics: vec!["orders".into()],
            from: Some("-3h".into()),
            until: Some("2026-11-19T10:00:00Z".into()),
            offsets: Some("5..9".into()),
            ..Which::default()
        };
        let selection = selection(&which, NOW).expect("good");
        assert_eq!(selection.from.expect("set").to_string(), "2026-11-19T07:30:00Z");
        assert_eq!(selection.offsets, Some((Position::new(5), Position::new(9))));
    }

    #[test]
    fn wrong_words_are_named() {
        let bad = |change: fn(&mut Which)| {
            let mut which = Which::default();
            change(&mut which);
            let failure = selection(&which, NOW).expect_err("bad");
            assert_eq!(failure.exit(), Exit::Usage);
            failure.to_string()
        };
        assert!(bad(|which| which.from = Some("soon".into())).contains("--from: `soon` is not a time"));
        assert!(bad(|which| (which.from, which.until) = (Some("now".into()), Some("-1h".into()))).contains("not before --until"));
        assert!(bad(|which| which.offsets = Some("9..9".into())).contains("`9..9` is no range"));
        assert!(bad(|which| which.partitions = vec![-1]).contains("count from 0"));
        assert!(bad(|which| which.key = Some("base64:*".into())).contains("--key"));
        assert!(bad(|which| which.where_ = Some("x".into())).contains("--where is not in this version"));
        assert!(bad(|which| which.latest_per_key = true).contains("--latest-per-key is not in this version"));
        assert!(job_name("a b").is_err() && job_name("").is_err() && job_name("rp-20261120-7f3c").is_ok());
    }

    #[test]
    fn what_later_versions_do_is_refused_by_name() {
        let text = |change: fn(&mut How)| {
            let mut how = How { to: Some("kafka://b".into()), ..How::default() };
            change(&mut how);
            target(&how, None).expect_err("later").to_string()
        };
        type Case = (fn(&mut How), &'static str);
        let cases: [Case; 7] = [
            (|how| how.guarantee = Some("exactly-once".into()), "--guarantee exactly-once is not in this version"),
            (|how| how.guarantee = Some("idempotent".into()), "--guarantee idempotent is not in this version"),
            (|how| how.guarantee = Some("maybe".into()), "`maybe` is no guarantee"),
            (|how| how.to_original = true, "--to-original"),
            (|how| how.pace = Some("original".into()), "--pace original is not in this version"),
            (|how| how.speed = Some("4x".into()), "--speed is not in this version"),
            (|how| how.to = Some("amqp://h/x".into()), "amqp:// as a target is not in this version"),
        ];
        for (change, expected) in cases {
            assert!(text(change).contains(expected), "{expected}: {}", text(change));
        }
        assert!(target(&How::default(), None).expect_err("none").to_string().contains("where to?"));
        assert!(later("pause").to_string().contains("`replayer pause` is not in this version"));
    }

    #[test]
    fn limits_are_read_with_their_units() {
        let how = How { rate: Some("5k/s".into()), bytes: Some("20MB/s".into()), ..How::default() };
        assert_eq!(limits(&how).expect("good"), Limits { events: Some(5_000.0), bytes: Some(2e7) });
        let bad = How { rate: Some("0".into()), ..How::default() };
        assert!(limits(&bad).expect_err("zero").to_string().contains("--rate"));
    }
}
