//! Ways to a store: certificates of one's own, proxies, and identities whose tokens lie in files that change.

use std::path::Path as FilePath;
use std::sync::Arc;

use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use tapedeck_common::ErrorKind;
use tapedeck_common::error::report;
use tapedeck_storage::probe::probe;
use tapedeck_testbed::{FaultProxy, HttpFault, Manners, PlainS3, Reply, TestCa, Which, shared_s3};

use crate::kit::{again, given, s3_environment, variable};

fn text(file: &FilePath) -> String {
    file.display().to_string()
}

fn own(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn says(body: &str) -> HttpFault {
    HttpFault::Instead(Reply { status: 200, body: body.to_owned() })
}

/// Every client: a real S3 server and a stub of Google, both behind HTTPS with a certificate that nobody else trusts.
#[test]
fn a_certificate_authority_of_ones_own_is_trusted_where_it_is_named() {
    let (ca, server, bucket) = (TestCa::new().expect("openssl"), shared_s3(), "behind-tls");
    server.make_bucket(bucket).expect("makes a bucket");
    let front = FaultProxy::with_tls(server.address(), &ca).expect("starts");
    let stub = PlainS3::start(Manners::Good).expect("starts");
    let google = FaultProxy::with_tls(stub.address(), &ca).expect("starts");
    let s3 = s3_environment(&format!("s3://{bucket}/a"), &front.endpoint());
    let gs = own(&[("GOOGLE_BEARER_TOKEN", "t"), ("TEST_URL", "gs://events/a"), ("TEST_ENDPOINT", &google.endpoint())]);
    for environment in [s3, gs] {
        let trusted = [("TEST_CA_FILE".to_owned(), text(&ca.file()))];
        again("access::the_probe_passes", environment.clone().into_iter().chain(trusted));
        again("access::the_certificate_is_refused", environment);
    }
}

#[tokio::test]
#[ignore = "started by tests of ways to a store"]
async fn the_probe_passes() {
    let mut given = given();
    probe(&given.store, &*given.clock, &mut given.rng).await.unwrap_or_else(|error| panic!("{}", report(&error)));
}

#[tokio::test]
#[ignore = "started by tests of ways to a store"]
async fn the_certificate_is_refused() {
    let mut given = given();
    let error = probe(&given.store, &*given.clock, &mut given.rng).await.expect_err("nobody knows the authority");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(report(&error).contains("certificate"), "{}", report(&error));
}

/// The store's name resolves nowhere; only the proxy of the environment leads to it.
#[test]
fn a_proxy_of_the_environment_is_used_and_left_out_where_it_is_told() {
    let stub = PlainS3::start(Manners::Good).expect("starts");
    let proxy = FaultProxy::before_nothing().expect("starts");
    proxy.strike(Which::all(), HttpFault::instead(403, "AccessDenied"));
    let environment = s3_environment("s3://events/a", "http://store.invalid");
    let through = own(&[("HTTP_PROXY", &proxy.endpoint())]);
    again("access::the_proxy_answers", environment.into_iter().chain(through));
    let seen = proxy.seen();
    assert!(!seen.is_empty() && seen.iter().all(|seen| seen.target.starts_with("http://store.invalid/events/a/")), "{seen:?}");
    let around = own(&[("HTTP_PROXY", &proxy.endpoint()), ("NO_PROXY", "127.0.0.1")]);
    again("access::the_probe_passes", s3_environment("s3://events/a", &stub.endpoint()).into_iter().chain(around));
    assert_eq!(proxy.seen().len(), seen.len());
}

#[tokio::test]
#[ignore = "started by tests of ways to a store"]
async fn the_proxy_answers() {
    let mut given = given();
    let error = probe(&given.store, &*given.clock, &mut given.rng).await.expect_err("the proxy refuses");
    assert!(error.kind() == ErrorKind::Invalid && report(&error).contains("AccessDenied"), "{}", report(&error));
}

/// Puts twice; in between, the file with the token gets a new one, as a kubelet does it.
#[tokio::test]
#[ignore = "started by tests of ways to a store"]
async fn a_token_file_changes_between_two_puts() {
    let given = given();
    let file = variable("TEST_TOKEN_FILE").expect("set by the test that starts this one");
    for token in ["token-one", "token-two"] {
        std::fs::write(&file, token).expect("writes");
        let put = given.store.store.put(&Path::from(token), PutPayload::from_static(b"x")).await;
        put.unwrap_or_else(|error| panic!("{token}: {error}"));
        // A token that is about to expire is fetched anew, but not within a tenth of a second.
        given.clock.sleep(std::time::Duration::from_millis(200)).await;
    }
}

struct Identity {
    _folder: tempfile::TempDir,
    file: String,
    /// Gives credentials for tokens.
    authority: FaultProxy,
    /// Before a store that takes every credential.
    front: FaultProxy,
    _store: Arc<PlainS3>,
}

impl Identity {
    fn new(authority: FaultProxy) -> Self {
        let folder = tempfile::tempdir().expect("tempdir");
        let file = text(&folder.path().join("token"));
        std::fs::write(&file, "token-zero").expect("writes");
        let store = Arc::new(PlainS3::start(Manners::Good).expect("starts"));
        let front = FaultProxy::before(store.address()).expect("starts");
        Self { _folder: folder, file, authority, front, _store: store }
    }

    /// Each of the two puts came with credentials for the token that the file held then.
    fn both_tokens_were_shown(&self, found: impl Fn(&tapedeck_testbed::Seen, &str) -> bool) {
        let asked = self.authority.seen();
        for token in ["token-one", "token-two"] {
            assert!(asked.iter().any(|seen| found(seen, token)), "{token}: {asked:?}");
        }
    }
}

const EXPIRED: &str = "2020-01-01T00:00:00Z";

/// Web identity, as pods of EKS and others have it (`AWS_WEB_IDENTITY_TOKEN_FILE`). The exchange is by HTTPS only.
#[test]
fn a_web_identity_of_amazon_reads_its_token_file_again() {
    let ca = TestCa::new().expect("openssl");
    let nobody = "127.0.0.1:9".parse().expect("an address");
    let identity = Identity::new(FaultProxy::with_tls(nobody, &ca).expect("starts"));
    identity.authority.strike(
        Which::all(),
        says(&format!(
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials><SessionToken>session</SessionToken>\
             <SecretAccessKey>secret</SecretAccessKey><Expiration>{EXPIRED}</Expiration><AccessKeyId>key</AccessKeyId></Credentials>\
             </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        )),
    );
    let environment = own(&[
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &identity.file),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/archiver"),
        ("AWS_ENDPOINT_URL_STS", &identity.authority.endpoint()),
        ("AWS_REGION", "us-east-1"),
        ("TEST_TOKEN_FILE", &identity.file),
        ("TEST_CA_FILE", &text(&ca.file())),
        ("TEST_URL", "s3://events/a"),
        ("TEST_ENDPOINT", &identity.front.endpoint()),
    ]);
    again("access::a_token_file_changes_between_two_puts", environment);
    identity.both_tokens_were_shown(|seen, token| seen.target.contains(&format!("WebIdentityToken={token}")));
    assert!(identity.front.seen().iter().all(|seen| seen.header("x-amz-security-token") == Some("session")));
}

/// Pod identity of EKS (`AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`).
#[test]
fn a_pod_identity_of_amazon_reads_its_token_file_again() {
    let identity = Identity::new(FaultProxy::before_nothing().expect("starts"));
    let credentials = format!(r#"{{"AccessKeyId":"key","SecretAccessKey":"secret","Token":"session","Expiration":"{EXPIRED}"}}"#);
    identity.authority.strike(Which::all(), says(&credentials));
    let environment = own(&[
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &format!("{}/v1/credentials", identity.authority.endpoint())),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &identity.file),
        ("AWS_REGION", "us-east-1"),
        ("TEST_TOKEN_FILE", &identity.file),
        ("TEST_URL", "s3://events/a"),
        ("TEST_ENDPOINT", &identity.front.endpoint()),
    ]);
    again("access::a_token_file_changes_between_two_puts", environment);
    identity.both_tokens_were_shown(|seen, token| seen.header("authorization") == Some(token));
    assert!(identity.front.seen().iter().all(|seen| seen.header("x-amz-security-token") == Some("session")));
}

/// Workload identity of Azure (`AZURE_FEDERATED_TOKEN_FILE`).
#[test]
fn a_workload_identity_of_azure_reads_its_token_file_again() {
    let identity = Identity::new(FaultProxy::before_nothing().expect("starts"));
    identity.authority.strike(Which::all(), says(r#"{"access_token":"granted","expires_in":1}"#));
    let environment = own(&[
        ("AZURE_CLIENT_ID", "client"),
        ("AZURE_TENANT_ID", "tenant"),
        ("AZURE_FEDERATED_TOKEN_FILE", &identity.file),
        ("AZURE_AUTHORITY_HOST", &identity.authority.endpoint()),
        ("AZURE_STORAGE_ACCOUNT", "account"),
        ("TEST_TOKEN_FILE", &identity.file),
        ("TEST_URL", "az://events/a"),
        ("TEST_ENDPOINT", &identity.front.endpoint()),
    ]);
    again("access::a_token_file_changes_between_two_puts", environment);
    identity.both_tokens_were_shown(|seen, token| seen.body.contains(&format!("client_assertion={token}")));
    assert!(identity.front.seen().iter().all(|seen| seen.header("authorization") == Some("Bearer granted")));
}
