//! Finds out at start-up whether a store keeps the promises that commits stand on.
//!
//! Promises: a store that accepts two creates of one key, or does not show what it stored, is refused with the reason; a
//! store that only fails to answer, or asks for fewer requests, is not. Leaves one small object under `_archive/probe/`.
//! Never: touches anything else.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tapedeck_common::{Clock, ErrorKind};

use crate::ids::fresh_uuid;
use crate::layout;
use crate::store::{Outcome, Store, StoreError, StoreKind, classify, is_throttled};

/// Creates of one key at once: stores that check first and store later were caught by fewer.
const CREATORS: usize = 16;

/// Waits for a store that paces its clients: Google allows about one change of an object a second, so the race can use it up.
const THROTTLED_WAIT: Duration = Duration::from_secs(2);
const THROTTLED_TRIES: u32 = 5;

/// Words in a store's answer that no waiting cures.
const SETTINGS_ARE_WRONG: [&str; 9] = [
    "NoSuchBucket",
    "ContainerNotFound",
    "AccountIsDisabled",
    "InvalidBucketName",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "redirect without LOCATION",
];

/// What a store showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probed {
    /// Creates of one key at once, of which one won.
    pub creators: usize,
    /// How many of the others were told that it exists.
    pub refused: usize,
    /// How many of the others were told to come back later. They prove nothing.
    pub throttled: usize,
}

impl fmt::Display for Probed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "of {} creates of one object at once 1 won and {} were refused", self.creators, self.refused)?;
        if self.throttled > 0 {
            write!(f, " ({} were put off)", self.throttled)?;
        }
        write!(f, "; a create of what exists was refused; what was stored was read and listed at once")
    }
}

/// Tries the store. `Invalid` means that it must not be used, `Unavailable` that it did not say: try again.
pub async fn probe(store: &Store, clock: &dyn Clock, rng: &mut fastrand::Rng) -> Result<Probed, StoreError> {
    let probe = Probe { store, clock, key: layout::archive_probe(&fresh_uuid(clock.now(), rng)) };
    let (winner, probed) = probe.race().await?;
    probe.create_again().await?;
    probe.read_back(&winner).await?;
    probe.list().await?;
    Ok(probed)
}

struct Probe<'a> {
    store: &'a Store,
    clock: &'a dyn Clock,
    key: Path,
}

fn body(number: usize) -> Bytes {
    Bytes::from(format!("tapedeck probes the store, creator {number:02}\n"))
}

impl Probe<'_> {
    async fn create(&self, number: usize) -> object_store::Result<()> {
        let create = PutOptions::from(PutMode::Create);
        self.store.store.put_opts(&self.key, body(number).into(), create).await.map(|_| ())
    }

    /// Exactly one of many creates may win, and its bytes are the ones that stay.
    async fn race(&self) -> Result<(Bytes, Probed), StoreError> {
        let answers = join_all((0..CREATORS).map(|number| self.create(number))).await;
        let winners: Vec<usize> = (0..CREATORS).filter(|number| answers[*number].is_ok()).collect();
        if winners.len() > 1 {
            let what = format!("it let {} of {CREATORS} writers create the same object", winners.len());
            return Err(self.refused(&what));
        }
        let (won, mut refused, mut throttled) = (winners.first().copied(), 0, 0);
        for error in answers.into_iter().filter_map(Result::err) {
            // Whoever was put off has created nothing. Without a winner, though, it is all that there is to say.
            match classify(&error) {
                Outcome::Exists => refused += 1,
                _ if won.is_some() && is_throttled(&error) => throttled += 1,
                _ => return Err(self.failed("create", error)),
            }
        }
        // None won, yet all were told that it exists: a lost reply or a conflict. Nothing is proved either way.
        let winner = won.ok_or_else(|| self.unsettled("every create was answered with a conflict"))?;
        Ok((body(winner), Probed { creators: CREATORS, refused, throttled }))
    }

    async fn create_again(&self) -> Result<(), StoreError> {
        for tried in 1.. {
            match self.create(CREATORS).await {
                Ok(()) => return Err(self.refused("it lets an object be created that exists: it ignores the condition")),
                Err(error) if classify(&error) == Outcome::Exists => break,
                Err(error) if is_throttled(&error) && tried < THROTTLED_TRIES => self.clock.sleep(THROTTLED_WAIT).await,
                Err(error) => return Err(self.failed("create", error)),
            }
        }
        Ok(())
    }

    async fn read_back(&self, winner: &Bytes) -> Result<(), StoreError> {
        let read = async { self.store.patient.get(&self.key).await?.bytes().await };
        let found = match read.await {
            Ok(found) => found,
            Err(error) if classify(&error) == Outcome::NotFound => {
                return Err(self.refused("it does not find an object right after storing it"));
            }
            Err(error) => return Err(self.failed("read", error)),
        };
        if found != *winner {
            return Err(self.refused("it told one writer that its create had won, and kept the bytes of another"));
        }
        let part = self.store.patient.get_range(&self.key, 9..15).await.map_err(|error| self.failed("read", error))?;
        if part != winner.slice(9..15) {
            return Err(self.refused("it answers a request for a part of an object with something else"));
        }
        Ok(())
    }

    async fn list(&self) -> Result<(), StoreError> {
        // From just before the key, so that the probes of years need not be listed.
        let before = Path::from(self.key.as_ref().trim_end_matches(|c: char| c.is_ascii_hexdigit()));
        let folder = self.key.parent();
        let mut listed = self.store.patient.list_with_offset(folder.as_ref(), &before).boxed();
        while let Some(object) = listed.try_next().await.map_err(|error| self.failed("list", error))? {
            if object.location == self.key {
                return Ok(());
            }
        }
        Err(self.refused("it does not list an object right after storing it"))
    }

    fn refused(&self, what: &str) -> StoreError {
        let text = format!(
            "the store {} cannot hold an archive: {what} (probed with {}); commits need a store that creates an object \
             only if it is absent and shows at once what it stored",
            self.store.url, self.key
        );
        StoreError::new(ErrorKind::Invalid, text)
    }

    fn unsettled(&self, what: &str) -> StoreError {
        let text = format!("the store {} could not be probed with {}: {what}", self.store.url, self.key);
        StoreError::new(ErrorKind::Unavailable, text)
    }

    fn failed(&self, operation: &str, error: object_store::Error) -> StoreError {
        let text = error.to_string();
        let wrong = SETTINGS_ARE_WRONG.iter().any(|word| text.contains(word));
        let kind = match classify(&error) {
            Outcome::Denied => ErrorKind::Invalid,
            _ if wrong => ErrorKind::Invalid,
            _ => ErrorKind::Unavailable,
        };
        let what = match kind {
            ErrorKind::Invalid => format!("the store {} refuses to {operation} {}", self.store.url, self.key),
            _ => format!("the store {} failed to {operation} {}", self.store.url, self.key),
        };
        StoreError { what: what + without_credentials(self.store.kind, &text), kind, source: Some(Box::new(error)) }
    }
}

/// Says what to set where the store client found no credentials and asked the machine's own service, in vain.
fn without_credentials(kind: StoreKind, text: &str) -> &'static str {
    let asked_the_machine = ["169.254.169.254", "metadata.google.internal"].iter().any(|host| text.contains(host));
    match kind {
        _ if !asked_the_machine => "",
        StoreKind::S3 => {
            "; the environment holds no credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
             AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN), and the machine has none to give"
        }
        StoreKind::Gcs => {
            "; the environment holds no credentials (GOOGLE_APPLICATION_CREDENTIALS), and the machine has none to give"
        }
        StoreKind::Azure => {
            "; the environment holds no credentials (AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN, or AZURE_CLIENT_ID with \
             AZURE_TENANT_ID and AZURE_FEDERATED_TOKEN_FILE or AZURE_CLIENT_SECRET), and the machine has none to give"
        }
        StoreKind::File | StoreKind::Memory => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_forgot_the_credentials_is_told_their_names() {
        let text = "Error performing PUT http://169.254.169.254/latest/api/token in 1s";
        for (kind, name) in [
            (StoreKind::S3, "AWS_ACCESS_KEY_ID"),
            (StoreKind::Gcs, "GOOGLE_APPLICATION_CREDENTIALS"),
            (StoreKind::Azure, "AZURE_STORAGE_KEY"),
        ] {
            assert!(without_credentials(kind, text).contains(name), "{kind}");
            assert_eq!(without_credentials(kind, "404 Not Found"), "");
        }
    }
}
