"""Lists the packages: `gcbs_st`, and the configurations, which lie in configs/ for readers and in the package for users."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["gcbs_st*"]), "gcbs_st.configs"], package_dir={"gcbs_st.configs": "configs"})
