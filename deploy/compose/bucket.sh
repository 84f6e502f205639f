#!/bin/sh
# Makes the bucket over the S3 API. Doing it again changes nothing.
set -eu
# SHA-256 of nothing: the request has no body, and not every curl signs that by itself.
empty=e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
status=$(curl -sS -o /dev/null -w '%{http_code}' -X PUT --retry 10 --retry-connrefused -H "x-amz-content-sha256: $empty" \
  --aws-sigv4 "aws:amz:$AWS_REGION:s3" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" "$S3_ENDPOINT/$BUCKET")
case $status in
200) echo "bucket $BUCKET made" ;;
409) echo "bucket $BUCKET is there already" ;;
*) echo "bucket $BUCKET could not be made: status $status" >&2; exit 1 ;;
esac
