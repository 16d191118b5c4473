# SPDX-License-Identifier: Apache-2.0
# Installs ${BUILD} into an empty ${STAGE}.
file(REMOVE_RECURSE ${STAGE})
execute_process(COMMAND ${CMAKE_COMMAND} --install ${BUILD} --prefix ${STAGE} COMMAND_ERROR_IS_FATAL ANY)
