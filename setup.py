"""What pyproject.toml cannot say: the compiled part, which may be missing where there is no C compiler."""

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "dawnchorus.fragment_stores._lmdb_lookup",
            ["fragment_stores/lmdb_lookup.c"],
            extra_compile_args=["-O3", "-std=c11", "-Wall", "-Wextra"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
