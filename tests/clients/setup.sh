#!/bin/sh
# Installs the clients that the end-to-end tests drive, from PyPI, each into a virtual environment of its own below DIR:
#   DIR/dcos      the dcos command line 0.6.1
#   DIR/marathon  the marathon library 0.13.0
# What is complete is left as it is, so that only the first run takes time.
set -eu
dir=${1:?usage: setup.sh DIR}
python=${PYTHON:-python3}

# Both clients were written for Python before 3.10, which had names such as collections.Mapping. Their sources stay
# untouched: a module that Python loads at start puts the names back.
old_names() {
    packages=$("$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    cat >"$packages/old_names.py" <<'PYTHON'
import collections
import collections.abc

for name in collections.abc.__all__:
    if not hasattr(collections, name):
        setattr(collections, name, getattr(collections.abc, name))
PYTHON
    echo 'import old_names' >"$packages/old_names.pth"
}

install() {
    "$dir/$client/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@"
}

# Runs a client's steps in a new environment, unless an earlier run has come to their end.
environment() {
    client=$1
    if [ -e "$dir/$client/complete" ]; then
        return 0
    fi
    rm -rf "${dir:?}/$client"
    "$python" -m venv "$dir/$client" || {
        echo "cannot make a virtual environment; on Debian and Ubuntu: apt-get install python3-venv" >&2
        exit 1
    }
    "install_$client"
    old_names "$dir/$client"
    touch "$dir/$client/complete"
}

# The versions that dcos asks for are older than this Python, so its dependencies are named one by one, and installed
# first, because pip complains of what does not fit.
install_dcos() {
    install 'setuptools<81' wheel
    install docopt==0.6.2 jsonschema==2.6.0 pager==3.3 pkginfo==1.2.1 prettytable==0.7.2 PyJWT==1.4.2 \
        retrying==1.3.3 sseclient==0.0.19 toml==0.10.2 'cryptography' 'pygments<3' 'requests<3' 'six<2'
    install --no-deps dcoscli==0.6.1 dcos==0.6.1
}

install_marathon() {
    install marathon==0.13.0
}

mkdir -p "$dir"
environment dcos
environment marathon
