//! What lies in the store, and what each request does to it. Keys are `bucket/key`; no I/O.

use std::collections::{BTreeMap, BTreeSet};

use super::http::{Answer, Request};

const DATE: &str = "2026-11-19T10:00:00.000Z";
const DATE_HTTP: &str = "Thu, 19 Nov 2026 10:00:00 GMT";

#[derive(Debug, Default)]
pub(crate) struct Objects {
    objects: BTreeMap<String, Vec<u8>>,
    uploads: BTreeMap<String, BTreeMap<u32, Vec<u8>>>,
    next_upload: u64,
}

impl Objects {
    pub(crate) fn answer(&mut self, request: &Request, keeps_conditions: bool) -> Answer {
        let name = request.path.trim_start_matches('/').to_owned();
        let has = |parameter: &str| request.query.contains_key(parameter);
        let is_bucket = !name.trim_end_matches('/').contains('/');
        match request.method.as_str() {
            "GET" if is_bucket => self.list(name.trim_end_matches('/'), request),
            "GET" | "HEAD" => self.get(&name, request),
            "PUT" if has("partNumber") => self.put_part(request),
            "PUT" => self.put(name, request, keeps_conditions),
            "POST" if has("uploads") => self.begin_upload(&name),
            "POST" if has("uploadId") => self.complete_upload(name, request),
            "POST" if has("delete") => self.delete_many(name.trim_end_matches('/'), request),
            "DELETE" if has("uploadId") => match self.uploads.remove(&request.query["uploadId"]) {
                Some(_) => Answer::new(204, ""),
                None => Answer::error(404, "NoSuchUpload"),
            },
            "DELETE" => {
                self.objects.remove(&name);
                Answer::new(204, "")
            }
            _ => Answer::error(501, "NotImplemented"),
        }
    }

    fn put(&mut self, name: String, request: &Request, keeps_conditions: bool) -> Answer {
        let says = |name: &str, value: &str| request.headers.get(name).is_some_and(|found| found == value);
        let create = says("if-none-match", "*") || says("x-goog-if-generation-match", "0");
        if create && keeps_conditions && self.objects.contains_key(&name) {
            return Answer::error(412, "PreconditionFailed");
        }
        let answer = Answer::new(200, "").with("ETag", tag(&request.body));
        self.objects.insert(name, request.body.clone());
        answer
    }

    fn get(&self, name: &str, request: &Request) -> Answer {
        let Some(body) = self.objects.get(name) else {
            return Answer::error(404, "NoSuchKey");
        };
        let range = request.headers.get("range").and_then(|range| range_of(range, body.len()));
        let answer = match range {
            Some((from, until)) => {
                Answer::new(206, &body[from..until]).with("Content-Range", format!("bytes {from}-{}/{}", until - 1, body.len()))
            }
            None => Answer::new(200, body.as_slice()),
        };
        answer.with("ETag", tag(body)).with("Last-Modified", DATE_HTTP)
    }

    fn list(&self, bucket: &str, request: &Request) -> Answer {
        let parameter = |name: &str| request.query.get(name).map_or("", String::as_str);
        let (prefix, delimiter) = (parameter("prefix"), parameter("delimiter"));
        let after = parameter("start-after").max(parameter("continuation-token"));
        let most: usize = parameter("max-keys").parse().unwrap_or(1_000);
        let mut folders = BTreeSet::new();
        let (mut contents, mut last, mut truncated) = (String::new(), "", false);
        let start = format!("{bucket}/");
        let keys = self.objects.range(start.clone()..).map_while(|(name, body)| Some((name.strip_prefix(&start)?, body)));
        let mut found = 0;
        for (key, body) in keys.filter(|(key, _)| key.starts_with(prefix) && *key > after) {
            if found == most {
                truncated = true;
                break;
            }
            found += 1;
            last = key;
            let rest = &key[prefix.len()..];
            match rest.split_once(delimiter).filter(|_| !delimiter.is_empty()) {
                Some((folder, _)) => {
                    folders.insert(format!("{prefix}{folder}{delimiter}"));
                }
                None => contents.push_str(&format!(
                    "<Contents><Key>{}</Key><LastModified>{DATE}</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
                    escape(key),
                    escape(&tag(body)),
                    body.len()
                )),
            }
        }
        for folder in folders {
            contents.push_str(&format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(&folder)));
        }
        if truncated {
            contents.push_str(&format!("<NextContinuationToken>{}</NextContinuationToken>", escape(last)));
        }
        Answer::new(
            200,
            format!(
                "<ListBucketResult><Name>{bucket}</Name><KeyCount>{found}</KeyCount><IsTruncated>{truncated}</IsTruncated>{contents}</ListBucketResult>"
            ),
        )
    }

    fn begin_upload(&mut self, name: &str) -> Answer {
        self.next_upload += 1;
        let id = format!("upload-{}", self.next_upload);
        self.uploads.insert(id.clone(), BTreeMap::new());
        let (bucket, key) = name.split_once('/').unwrap_or((name, ""));
        Answer::new(
            200,
            format!(
                "<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{}</Key><UploadId>{id}</UploadId></InitiateMultipartUploadResult>",
                escape(key)
            ),
        )
    }

    fn put_part(&mut self, request: &Request) -> Answer {
        let number = request.query["partNumber"].parse().unwrap_or(0);
        let upload = request.query.get("uploadId").and_then(|id| self.uploads.get_mut(id));
        let Some(parts) = upload else {
            return Answer::error(404, "NoSuchUpload");
        };
        parts.insert(number, request.body.clone());
        Answer::new(200, "").with("ETag", tag(&request.body))
    }

    fn complete_upload(&mut self, name: String, request: &Request) -> Answer {
        let Some(parts) = self.uploads.remove(&request.query["uploadId"]) else {
            return Answer::error(404, "NoSuchUpload");
        };
        let body = parts.into_values().collect::<Vec<_>>().concat();
        let tag = escape(&tag(&body));
        let (bucket, key) = name.split_once('/').unwrap_or((&name, ""));
        let text = format!(
            "<CompleteMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{}</Key><ETag>{tag}</ETag></CompleteMultipartUploadResult>",
            escape(key)
        );
        self.objects.insert(name.clone(), body);
        Answer::new(200, text)
    }

    fn delete_many(&mut self, bucket: &str, request: &Request) -> Answer {
        let body = String::from_utf8_lossy(&request.body).into_owned();
        let mut text = String::from("<DeleteResult>");
        for key in body.split("<Key>").skip(1).filter_map(|rest| rest.split("</Key>").next()) {
            self.objects.remove(&format!("{bucket}/{}", unescape(key)));
            text.push_str(&format!("<Deleted><Key>{key}</Key></Deleted>"));
        }
        text.push_str("</DeleteResult>");
        Answer::new(200, text)
    }
}

fn tag(body: &[u8]) -> String {
    format!("\"{}\"", &blake3::hash(body).to_hex()[..32])
}

/// `bytes=from-last`, `bytes=from-` or `bytes=-count`; half open.
fn range_of(header: &str, length: usize) -> Option<(usize, usize)> {
    let (from, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    if from.is_empty() {
        let count: usize = last.parse().ok()?;
        return Some((length.saturating_sub(count), length));
    }
    let from: usize = from.parse().ok()?;
    let until = last.parse().map_or(length, |last: usize| last + 1).min(length);
    (from < until).then_some((from, until))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn unescape(text: &str) -> String {
    text.replace("&quot;", "\"").replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")
}
