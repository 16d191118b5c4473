# SPDX-License-Identifier: Apache-2.0
# Run at every build: writes the commit into a header when it has changed. GIT, SOURCE and OUTPUT come from the caller.
set(commit unknown)
if(GIT)
  execute_process(COMMAND ${GIT} describe --always --dirty --abbrev=10 WORKING_DIRECTORY ${SOURCE}
    OUTPUT_VARIABLE described OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  if(described)
    set(commit ${described})
  endif()
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT
  "namespace bench {\ninline const char* built_commit() { return \"@commit@\"; }\n}  // namespace bench\n" @ONLY)
