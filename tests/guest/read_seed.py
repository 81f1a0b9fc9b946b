"""Have cloud-init read a seed, and print as JSON what it made of it.

Run by a Python that finds cloud-init's package, with cloud-init's directory: the seed lies in `seed/nocloud` there.
"""

import json
import sys

import yaml
from cloudinit import distros, helpers
from cloudinit.config.schema import get_schema, validate_cloudconfig_schema
from cloudinit.sources.DataSourceNoCloud import DataSourceNoCloud
from cloudinit.user_data import UserDataProcessor

paths = helpers.Paths({"cloud_dir": sys.argv[1], "run_dir": sys.argv[1]})
source = DataSourceNoCloud({}, distros.fetch("debian")("debian", {}, paths), paths)
if not source.get_data():
    sys.exit("cloud-init found no seed")
validate_cloudconfig_schema(yaml.safe_load(source.get_userdata_raw()), schema=get_schema(), strict=True)


def kinds(data: bytes) -> list[str]:
    """Give what cloud-init takes the parts of some data for."""
    parts = UserDataProcessor(paths).process(data).walk()
    return [part.get_content_type() for part in parts if not part.is_multipart()]


hostname = source.get_hostname()
json.dump(
    {
        "seed": source.seed,
        "instance": source.get_instance_id(),
        "hostname": getattr(hostname, "hostname", hostname),
        "keys": source.get_public_ssh_keys(),
        "network": source.network_config,
        "region": source.metadata.get("region"),
        "user": kinds(source.get_userdata_raw()),
        "vendor": kinds(source.get_vendordata_raw()),
    },
    sys.stdout,
)
