"""Make S3 buckets that are not there yet: ``python make_buckets.py ENDPOINT BUCKET...``."""

import sys

import boto3


def main(endpoint: str, *names: str) -> None:
    """Credentials come from the environment, as boto3 reads it."""
    client = boto3.client("s3", endpoint_url=endpoint)
    present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in names:
        if name not in present:
            client.create_bucket(Bucket=name)


if __name__ == "__main__":
    main(*sys.argv[1:])
