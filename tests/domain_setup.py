"""Makes the directory of a domain controller of Active Directory for tests. Run by the system's Python, which has
Samba's modules: domain_setup.py FOLDER ADDRESS. Prints a JSON object of SIDs by name."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import samba.dckeytab  # adds Net.export_keytab
from samba.auth import system_session
from samba.credentials import Credentials
from samba.dcerpc.security import dom_sid
from samba.dsdb import DS_DOMAIN_FUNCTION_2008_R2
from samba.ndr import ndr_unpack
from samba.net import Net
from samba.param import LoadParm
from samba.provision import FILL_FULL, provision
from samba.samdb import SamDB

assert samba.dckeytab

REALM, DOMAIN, PASSWORD = "MEDV.TEST", "MEDV", "Passw0rd!1"
MEMBERS = {"engineers": ["alice"], "alphas": ["engineers"], "betas": ["bob", "PC2$"]}
SERVICES = {"webhost": ["HTTP/localhost"], "otherhost": ["HTTP/other.medv.test"]}
ROLE = "active directory domain controller"


def configured(folder: Path, address: str) -> LoadParm:
    """Write the configuration and load it."""
    (folder / "etc").mkdir(parents=True)
    (folder / "run").mkdir()
    options = {
        "netbios name": "DC1",
        "realm": REALM,
        "workgroup": DOMAIN,
        "server role": ROLE,
        "private dir": folder / "private",
        "lock directory": folder,
        "state directory": folder / "state",
        "cache directory": folder / "cache",
        "binddns dir": folder / "bind-dns",
        "pid directory": folder / "run",
        "ncalrpc dir": folder / "run/ncalrpc",
        "ntp signd socket directory": folder / "run/ntp",
        "interfaces": f"{address}/8",
        "bind interfaces only": "yes",
        "server services": "rpc, ldap, cldap, kdc",
        "dns forwarder": "",
        "tls enabled": "no",
    }
    lines = ["[global]", *(f"{key} = {value}" for key, value in options.items())]
    lines += ["[sysvol]", f"path = {folder}/state/sysvol"]
    lines += ["[netlogon]", f"path = {folder}/state/sysvol/medv.test/scripts"]
    (folder / "etc/smb.conf").write_text("\n".join(lines) + "\n")
    loaded = LoadParm()
    loaded.load(str(folder / "etc/smb.conf"))
    return loaded


def fill(database: SamDB) -> dict[str, str]:
    """Add users, groups, computers and services; return the SIDs of accounts."""
    database.transaction_start()
    for user in ("alice", "bob", "carol", *SERVICES):
        database.newuser(user, PASSWORD)
    for computer in ("PC1", "PC2"):
        database.newcomputer(computer)
        database.setpassword(f"(sAMAccountName={computer}$)", PASSWORD)
    for group, members in MEMBERS.items():
        database.newgroup(group)
        database.add_remove_group_members(group, members)
    for user, names in SERVICES.items():
        lines = "".join(f"servicePrincipalName: {name}\n" for name in names)
        database.modify_ldif(
            f"dn: CN={user},CN=Users,DC=medv,DC=test\nchangetype: modify\nadd: servicePrincipalName\n{lines}-\n"
            "replace: msDS-SupportedEncryptionTypes\nmsDS-SupportedEncryptionTypes: 24\n"
        )
    database.transaction_commit()
    sids = {}
    for name in MEMBERS:
        (found,) = database.search(expression=f"(sAMAccountName={name})", attrs=["objectSid"])
        sids[name] = str(ndr_unpack(dom_sid, found["objectSid"][0]))
    return sids


def main(folder: Path, address: str) -> None:
    """Make everything."""
    parameters = configured(folder, address)
    session = system_session()
    provision(
        logging.getLogger("provision"), session, smbconf=str(folder / "etc/smb.conf"), samdb_fill=FILL_FULL,
        realm=REALM, domain=DOMAIN, hostname="dc1", hostip=address, serverrole=ROLE, adminpass="Passw0rd!adm",
        lp=parameters, dns_backend="SAMBA_INTERNAL", dom_for_fun_level=DS_DOMAIN_FUNCTION_2008_R2, skip_sysvolacl=True,
    )  # fmt: skip
    database = SamDB(url=parameters.samdb_url(), session_info=session, lp=parameters)
    sids = fill(database)
    credentials = Credentials()
    credentials.guess(parameters)
    exporter = Net(credentials, parameters)
    for name, principal in (
        ("http", "HTTP/localhost"),
        ("other", "HTTP/other.medv.test"),
        ("pc1", "PC1$"),
        ("pc2", "PC2$"),
    ):
        exporter.export_keytab(keytab=str(folder / f"{name}.keytab"), principal=principal)
        (folder / f"{name}.keytab").chmod(0o600)
    print(json.dumps(sids))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
