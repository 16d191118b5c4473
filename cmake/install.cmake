# SPDX-License-Identifier: Apache-2.0
# Headers, both targets, the CMake package and blockpack.pc.
include(CMakePackageConfigHelpers)

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.hpp")
install(FILES ${PROJECT_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
set_target_properties(blockpack_headers PROPERTIES EXPORT_NAME headers)
install(TARGETS blockpack blockpack_headers EXPORT blockpack_targets)

set(blockpack_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/blockpack)
install(EXPORT blockpack_targets NAMESPACE blockpack:: FILE blockpack_targets.cmake DESTINATION ${blockpack_cmake_dir})

# A static library leaves the OpenMP runtime to be linked by its user; everything else public is the standard library.
set(blockpack_find_dependencies "")
if(OpenMP_CXX_FOUND AND NOT BUILD_SHARED_LIBS)
  set(blockpack_find_dependencies "find_dependency(OpenMP COMPONENTS CXX)")
endif()
configure_package_config_file(${CMAKE_CURRENT_LIST_DIR}/blockpack-config.cmake.in
  ${PROJECT_BINARY_DIR}/blockpack-config.cmake INSTALL_DESTINATION ${blockpack_cmake_dir}
  NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/blockpack-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/blockpack-config.cmake ${PROJECT_BINARY_DIR}/blockpack-config-version.cmake
  DESTINATION ${blockpack_cmake_dir})

# blockpack.pc finds its tree from where it lies itself, so the tree may be moved; folders that were given as absolute
# paths stay absolute.
if(IS_ABSOLUTE "${CMAKE_INSTALL_LIBDIR}")
  set(blockpack_pc_prefix "${CMAKE_INSTALL_PREFIX}")
  set(blockpack_pc_libdir "${CMAKE_INSTALL_LIBDIR}")
else()
  file(RELATIVE_PATH blockpack_pc_up "/prefix/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/prefix")
  string(REGEX REPLACE "/$" "" blockpack_pc_up "${blockpack_pc_up}")
  set(blockpack_pc_prefix "\${pcfiledir}/${blockpack_pc_up}")
  set(blockpack_pc_libdir "\${prefix}/${CMAKE_INSTALL_LIBDIR}")
endif()
if(IS_ABSOLUTE "${CMAKE_INSTALL_INCLUDEDIR}")
  set(blockpack_pc_includedir "${CMAKE_INSTALL_INCLUDEDIR}")
else()
  set(blockpack_pc_includedir "\${prefix}/${CMAKE_INSTALL_INCLUDEDIR}")
endif()
set(blockpack_pc_cflags "")
set(blockpack_pc_libs "")
if(NOT BUILD_SHARED_LIBS)
  set(blockpack_pc_cflags " -DBLOCKPACK_STATIC=1")
  # The only library in its prefix is linked without `pkg-config --static`, too: what it needs stands in Libs.
  string(REPLACE ";" " " blockpack_pc_libs " ${OpenMP_CXX_FLAGS} -pthread")
endif()
configure_file(${CMAKE_CURRENT_LIST_DIR}/blockpack.pc.in ${PROJECT_BINARY_DIR}/blockpack.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/blockpack.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
