"""Create missing S3 buckets: ``python make_buckets.py ENDPOINT BUCKET...``."""

import sys

import boto3


def main(endpoint: str, *names: str) -> None:
    """Create the buckets, with credentials that boto3 reads from the environment."""
    client = boto3.client("s3", endpoint_url=endpoint)
    present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    for name in names:
        if name not in present:
            client.create_bucket(Bucket=name)


if __name__ == "__main__":
    main(*sys.argv[1:])
